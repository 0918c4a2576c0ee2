"""The text behind the built-in data set: tables of common knowledge that nobody disputes, and wordings.

Countries with two capitals, on two continents or with a name that needs an article are left out on purpose,
and so are animals, words and things about which two answers could be defended.
A `..._CLASHES` constant lists, one group a line, answers that may both be argued for one question,
so that they never stand beside each other as right and wrong choices.
"""


def _table(text: str) -> dict[str, str]:
    """Parse `key: value; key: value`."""
    pairs = (entry.partition(": ")[::2] for entry in " ".join(text.split()).rstrip(";").split("; "))
    return dict(pairs)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _members(text: str) -> dict[str, str]:
    """Parse lines of `group: member, member` into member -> group."""
    groups = (line.strip().split(": ") for line in text.strip().splitlines())
    return {member: group for group, members in groups for member in members.split(", ")}


_CAPITALS_BY_CONTINENT = {
    "Europe": """
        France: Paris; Spain: Madrid; Portugal: Lisbon; Italy: Rome; Germany: Berlin; Austria: Vienna;
        Belgium: Brussels; Denmark: Copenhagen; Sweden: Stockholm; Norway: Oslo; Finland: Helsinki;
        Iceland: Reykjavik; Ireland: Dublin; Poland: Warsaw; Hungary: Budapest; Greece: Athens; Romania: Bucharest;
        Bulgaria: Sofia; Croatia: Zagreb; Serbia: Belgrade; Slovakia: Bratislava; Slovenia: Ljubljana;
        Albania: Tirana; Estonia: Tallinn; Latvia: Riga; Lithuania: Vilnius; Ukraine: Kyiv; Malta: Valletta;
        Belarus: Minsk; Moldova: Chisinau""",
    "Asia": """
        Japan: Tokyo; China: Beijing; India: New Delhi; Nepal: Kathmandu; Bangladesh: Dhaka; Pakistan: Islamabad;
        Thailand: Bangkok; Vietnam: Hanoi; Laos: Vientiane; Cambodia: Phnom Penh; South Korea: Seoul;
        Mongolia: Ulaanbaatar; Iran: Tehran; Iraq: Baghdad; Jordan: Amman; Lebanon: Beirut; Saudi Arabia: Riyadh;
        Oman: Muscat; Qatar: Doha; Afghanistan: Kabul; Uzbekistan: Tashkent; Syria: Damascus; Bhutan: Thimphu""",
    "Africa": """
        Egypt: Cairo; Kenya: Nairobi; Ethiopia: Addis Ababa; Ghana: Accra; Nigeria: Abuja; Senegal: Dakar;
        Morocco: Rabat; Tunisia: Tunis; Algeria: Algiers; Libya: Tripoli; Uganda: Kampala; Rwanda: Kigali;
        Zambia: Lusaka; Zimbabwe: Harare; Angola: Luanda; Mozambique: Maputo; Namibia: Windhoek;
        Botswana: Gaborone; Madagascar: Antananarivo; Mali: Bamako; Malawi: Lilongwe; Niger: Niamey;
        Liberia: Monrovia""",
    "North America": """
        Canada: Ottawa; Cuba: Havana; Jamaica: Kingston; Haiti: Port-au-Prince; Costa Rica: San Jose;
        Honduras: Tegucigalpa; Nicaragua: Managua; Mexico: Mexico City; El Salvador: San Salvador;
        Belize: Belmopan; Barbados: Bridgetown""",
    "South America": """
        Peru: Lima; Brazil: Brasilia; Argentina: Buenos Aires; Chile: Santiago; Colombia: Bogota; Ecuador: Quito;
        Venezuela: Caracas; Uruguay: Montevideo; Paraguay: Asuncion; Guyana: Georgetown; Suriname: Paramaribo""",
    "Oceania": "Australia: Canberra; New Zealand: Wellington; Fiji: Suva; Papua New Guinea: Port Moresby",
}
CAPITALS = {x: y for text in _CAPITALS_BY_CONTINENT.values() for x, y in _table(text).items()}
COUNTRIES = {capital: country for country, capital in CAPITALS.items()}
REGIONS = {country: name for name, text in _CAPITALS_BY_CONTINENT.items() for country in _table(text)}
# Egypt reaches into Asia, and not everyone calls Oceania a continent.
CONTINENTS = {country: name for country, name in REGIONS.items() if name != "Oceania" and country != "Egypt"}

CURRENCIES = _table("""
    Japan: yen; India: rupee; China: yuan; South Korea: won; Mexico: peso; Russia: ruble; Poland: zloty;
    Denmark: krone; Norway: krone; Thailand: baht; Vietnam: dong; Brazil: real; Peru: sol; South Africa: rand;
    Nigeria: naira; Kenya: shilling; Hungary: forint; Turkey: lira; France: euro; Germany: euro; Italy: euro;
    Spain: euro; Ireland: euro; Finland: euro; Austria: euro; Portugal: euro; Greece: euro; Belgium: euro;
    Saudi Arabia: riyal; Canada: dollar; Australia: dollar; New Zealand: dollar; Ukraine: hryvnia; Romania: leu;
    Morocco: dirham; Egypt: pound; Bangladesh: taka; Ghana: cedi; Ethiopia: birr; Cambodia: riel; Argentina: peso;
    Chile: peso; Colombia: peso; Pakistan: rupee; Nepal: rupee; Laos: kip""")
CURRENCY_CLASHES = "euro, lira, shilling, pound"  # some euro countries used the others before

LANGUAGES = _table("""
    Japan: Japanese; China: Chinese; France: French; Germany: German; Italy: Italian; Portugal: Portuguese;
    Brazil: Portuguese; Spain: Spanish; Mexico: Spanish; Argentina: Spanish; Chile: Spanish; Colombia: Spanish;
    Cuba: Spanish; Egypt: Arabic; Jordan: Arabic; Iraq: Arabic; Saudi Arabia: Arabic; Greece: Greek;
    Poland: Polish; Hungary: Hungarian; Turkey: Turkish; Russia: Russian; Sweden: Swedish; Norway: Norwegian;
    Denmark: Danish; Finland: Finnish; Iceland: Icelandic; Thailand: Thai; Vietnam: Vietnamese;
    South Korea: Korean; Romania: Romanian; Bulgaria: Bulgarian; Croatia: Croatian; Iran: Persian;
    Albania: Albanian; Austria: German; Australia: English; New Zealand: English; Ukraine: Ukrainian;
    Lithuania: Lithuanian; Latvia: Latvian; Mongolia: Mongolian; Bangladesh: Bengali; Cambodia: Khmer""")

YOUNG = _table("""
    dog: puppy; cat: kitten; cow: calf; horse: foal; sheep: lamb; goat: kid; pig: piglet; chicken: chick;
    duck: duckling; goose: gosling; swan: cygnet; bear: cub; lion: cub; tiger: cub; deer: fawn; kangaroo: joey;
    koala: joey; frog: tadpole; toad: tadpole; eagle: eaglet; owl: owlet; elephant: calf; whale: calf;
    giraffe: calf; donkey: foal; zebra: foal; hare: leveret; leopard: cub; dolphin: calf; hippo: calf""")
YOUNG_CLASHES = """
    calf, fawn, kid
    chick, duckling, gosling, cygnet, eaglet, owlet"""

SOUNDS = _table("""
    dog: barks; cat: meows; cow: moos; sheep: bleats; goat: bleats; horse: neighs; pig: oinks; duck: quacks;
    lion: roars; wolf: howls; snake: hisses; bee: buzzes; owl: hoots; frog: croaks; mouse: squeaks;
    rooster: crows; donkey: brays; turkey: gobbles; elephant: trumpets; goose: honks; pigeon: coos; crow: caws;
    hen: clucks; mosquito: buzzes; sparrow: chirps; cricket: chirps; dove: coos; tiger: roars; wasp: buzzes""")
SOUND_CLASHES = """
    barks, howls, roars, trumpets
    meows, hisses, honks, quacks, roars
    crows, caws, clucks, gobbles
    croaks, chirps, squeaks
    chirps, buzzes
    coos, hoots, chirps"""

# (thing, part) -> how many of the parts the thing has.
PARTS = _table("""
    dog, legs: 4; cat, legs: 4; horse, legs: 4; cow, legs: 4; elephant, legs: 4; lion, legs: 4; sheep, legs: 4;
    chicken, legs: 2; duck, legs: 2; ostrich, legs: 2; penguin, legs: 2; spider, legs: 8; scorpion, legs: 8;
    ant, legs: 6; bee, legs: 6; beetle, legs: 6; butterfly, legs: 6; fly, legs: 6; mosquito, legs: 6;
    triangle, sides: 3; square, sides: 4; rectangle, sides: 4; pentagon, sides: 5; hexagon, sides: 6;
    heptagon, sides: 7; octagon, sides: 8; decagon, sides: 10; bicycle, wheels: 2; tricycle, wheels: 3;
    violin, strings: 4; cello, strings: 4; cube, faces: 6; pig, legs: 4; tiger, legs: 4;
    owl, legs: 2; swan, legs: 2; wasp, legs: 6; giraffe, legs: 4; camel, legs: 4""")

_OPPOSITE_PAIRS = _table("""
    hot: cold; big: small; tall: short; fast: slow; up: down; in: out; day: night; black: white; happy: sad;
    open: closed; full: empty; hard: soft; wet: dry; old: young; early: late; heavy: light; rich: poor;
    strong: weak; thick: thin; wide: narrow; deep: shallow; high: low; loud: quiet; clean: dirty; rough: smooth;
    near: far; left: right; true: false; push: pull; buy: sell; win: lose; arrive: depart; always: never;
    above: below; inside: outside; first: last; best: worst; love: hate; war: peace; north: south; east: west;
    summer: winter; question: answer; friend: enemy; success: failure; increase: decrease; accept: refuse;
    remember: forget; float: sink; laugh: cry; asleep: awake; alive: dead; safe: dangerous; polite: rude;
    brave: cowardly; simple: complicated; cheap: expensive; modern: ancient; public: private; maximum: minimum;
    entrance: exit; import: export; create: destroy; attack: defend; visible: invisible; possible: impossible;
    legal: illegal; lucky: unlucky; give: take; guilty: innocent; vertical: horizontal; front: back;
    hero: villain; tight: loose; male: female; positive: negative; victory: defeat; ascend: descend""")
OPPOSITES = _OPPOSITE_PAIRS | {y: x for x, y in _OPPOSITE_PAIRS.items()}
OPPOSITE_CLASHES = """
    up, high, above, north, tall, ascend, maximum, big, increase, deep, wide, thick, full, heavy
    down, low, below, south, short, descend, minimum, small, decrease, shallow, narrow, thin, light, sink
    in, inside, entrance, arrive, import, near, first, front, accept
    out, outside, exit, depart, export, far, last, back, refuse
    hot, summer, day, white, light, dry
    cold, winter, night, black
    happy, laugh, love, peace, polite, friend, positive, best, lucky, quiet, light
    sad, cry, hate, war, rude, enemy, negative, worst, unlucky, attack, loud, poor, guilty
    win, victory, success, accept, strong, brave, hard, heavy, tight, hero
    lose, defeat, failure, destroy, refuse, weak, soft, light, loose, cowardly, smooth, quiet, poor
    old, ancient, late, last, dead, slow, always
    young, modern, early, first, alive, fast, awake
    big, strong, rich, loud, tall, best
    small, weak, poor, quiet, worst
    true, right, possible, legal, innocent, positive, always, best, safe, clean
    false, left, impossible, illegal, guilty, negative, never, worst, dangerous, dirty, villain
    sell, give, push, refuse, lose, export, forget
    buy, take, pull, accept, win, import, defend, create
    quiet, asleep, dead, soft
    loud, awake, alive, hard
    open, public, outside, out, loose, full, visible, empty, wide
    closed, private, inside, in, tight, invisible, narrow
    simple, cheap, poor, light, fast, smooth
    complicated, expensive, rich, heavy, slow, rough, hard, rude, sharp
    answer, forget"""

ELEMENTS = _table("""
    hydrogen: H; helium: He; lithium: Li; boron: B; carbon: C; nitrogen: N; oxygen: O; fluorine: F; neon: Ne;
    sodium: Na; magnesium: Mg; silicon: Si; phosphorus: P; sulfur: S; chlorine: Cl; argon: Ar; potassium: K;
    calcium: Ca; titanium: Ti; chromium: Cr; manganese: Mn; iron: Fe; cobalt: Co; nickel: Ni; copper: Cu;
    zinc: Zn; arsenic: As; bromine: Br; krypton: Kr; silver: Ag; cadmium: Cd; tin: Sn; iodine: I; xenon: Xe;
    barium: Ba; tungsten: W; platinum: Pt; gold: Au; mercury: Hg; lead: Pb; bismuth: Bi; radium: Ra; uranium: U""")
SYMBOLS = {symbol: element for element, symbol in ELEMENTS.items()}

COLORS = _table("""
    grass: green; fresh snow: white; coal: black; blood: red; a ripe banana: yellow; a carrot: orange;
    a lemon: yellow; a clear daytime sky: blue; an emerald: green; a ruby: red; milk: white; milk chocolate: brown;
    a lime: green; spinach: green; broccoli: green; a flamingo: pink; a polar bear: white; a pumpkin: orange;
    table salt: white; a cucumber: green; a ripe strawberry: red; a ripe blueberry: blue; soot: black; tar: black;
    lavender: purple; mustard: yellow; cinnamon: brown; ketchup: red; a raven: black; charcoal: black;
    wheat flour: white; lettuce: green; a sunflower petal: yellow; a stop sign: red;
    bread crust: brown""")
COLOR_CLASHES = """
    blue, purple, black
    red, orange, pink
    yellow, orange, brown
    red, pink, purple
    black, brown"""

PAST_TENSES = _table("""
    go: went; eat: ate; see: saw; take: took; come: came; run: ran; write: wrote; drink: drank; sing: sang;
    swim: swam; begin: began; break: broke; bring: brought; build: built; buy: bought; catch: caught;
    choose: chose; draw: drew; drive: drove; fall: fell; feel: felt; find: found; fly: flew; forget: forgot;
    get: got; give: gave; grow: grew; have: had; hear: heard; hold: held; keep: kept; know: knew; leave: left;
    lose: lost; make: made; meet: met; pay: paid; ride: rode; ring: rang; rise: rose; say: said; sell: sold;
    send: sent; sleep: slept; speak: spoke; spend: spent; stand: stood; steal: stole; teach: taught; tell: told;
    think: thought; throw: threw; understand: understood; wake: woke; wear: wore; win: won; blow: blew;
    bite: bit; hide: hid; freeze: froze; shake: shook; lend: lent; feed: fed; fight: fought""")

CATEGORIES = _members("""
    fruit: apple, banana, pear, grape, mango, peach, cherry, plum, pineapple, strawberry, lemon, melon, apricot
    vegetable: carrot, onion, potato, cabbage, turnip, radish, leek, cauliflower, parsnip
    bird: eagle, owl, sparrow, pigeon, parrot, robin, swan, crow, penguin, ostrich, flamingo
    mammal: dog, cat, horse, cow, elephant, lion, tiger, rabbit, whale, bear, dolphin, monkey, kangaroo
    fish: salmon, tuna, trout, shark, sardine, herring
    insect: ant, bee, beetle, mosquito, grasshopper, wasp, butterfly, moth
    vehicle: car, bus, truck, bicycle, tram, motorcycle, van, taxi, ambulance
    musical instrument: piano, guitar, violin, flute, trumpet, harp, cello, clarinet, saxophone
    tool: hammer, saw, screwdriver, wrench, chisel, axe
    piece of furniture: chair, table, sofa, bed, desk, wardrobe, bookcase, stool, armchair
    piece of clothing: shirt, coat, jacket, skirt, sweater, scarf, glove, sock, blouse
    flower: tulip, daisy, lily, orchid, daffodil, carnation, sunflower
    tree: oak, pine, birch, maple, willow, elm, cedar""")
CATEGORY_CLASHES = """
    fruit, tree, flower, vegetable
    vehicle, tool, musical instrument
    piece of furniture, tool"""
# "A tuna is not a mammal" is easy; "one of these lives on land" would be a second answer.
ODD_ONE_OUT_CLASHES = (
    CATEGORY_CLASHES
    + """
    bird, mammal, fish, insect"""
)

# What a worker does -> the worker.
JOBS = _table("""
    bakes bread: baker; teaches at a school: teacher; flies airplanes: pilot; grows crops: farmer;
    treats people's teeth: dentist; makes things out of wood: carpenter; repairs water pipes: plumber;
    puts out fires: firefighter; sews and alters clothes: tailor; writes novels: author; presides over a court: judge;
    lends books to readers: librarian; cuts and sells meat: butcher; repairs cars: mechanic;
    travels into space: astronaut; treats sick animals: vet; takes photographs: photographer; cuts hair: hairdresser;
    arranges and sells flowers: florist; designs buildings: architect; installs electrical wiring: electrician;
    prepares medicine in a pharmacy: pharmacist; digs coal out of the ground: miner; keeps bees: beekeeper;
    writes music: composer; performs in plays: actor; translates texts: translator; guards a flock of sheep: shepherd;
    studies the stars: astronomer; studies rocks: geologist; studies plants: botanist; lays bricks: bricklayer;
    guards the goal in soccer: goalkeeper; makes pots out of clay: potter; serves food in a restaurant: waiter;
    delivers letters: mail carrier; drives a taxi: taxi driver; sells fish: fishmonger; carves statues: sculptor;
    reports the news: journalist""")
JOB_CLASHES = """
    farmer, shepherd, beekeeper, vet, botanist, florist
    butcher, fishmonger, waiter, baker
    author, translator, journalist, composer, actor
    sculptor, potter, carpenter, bricklayer
    architect, bricklayer, carpenter
    electrician, plumber, bricklayer, mechanic, carpenter
    miner, geologist
    astronaut, astronomer, pilot
    teacher, librarian, author"""

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = _table("""
    January: 31; February: 28; March: 31; April: 30; May: 31; June: 30; July: 31; August: 31; September: 30;
    October: 31; November: 30; December: 31""")

# one unit, its plural, the smaller unit, how many of the smaller make the larger
UNITS = tuple(
    _words(line)
    for line in """
        hour hours minutes 60
        minute minutes seconds 60
        day days hours 24
        week weeks days 7
        year years months 12
        decade decades years 10
        century centuries years 100
        kilometer kilometers meters 1000
        meter meters centimeters 100
        centimeter centimeters millimeters 10
        kilogram kilograms grams 1000
        liter liters milliliters 1000
        foot feet inches 12
        yard yards feet 3
        gallon gallons quarts 4
        dollar dollars cents 100
    """.strip().splitlines()
)

NUMERALS = _words("""
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen""")
TENS = _words("twenty thirty forty fifty sixty seventy eighty ninety")

WORDS = _words("""
    garden river window bottle market paper summer winter kitchen morning evening teacher doctor village
    mountain island forest bridge castle church school street picture mirror pencil basket candle blanket
    pillow ladder engine ticket button pocket camera planet rocket silver orange purple yellow flower butter
    cheese bread sugar coffee breakfast dinner lunch supper hospital library museum station airport harbor
    letter number answer question story poem music dance voice friend family mother father sister brother
    child neighbor stranger king queen prince knight dragon monkey rabbit turtle spider lizard salmon eagle
    pigeon parrot feather shadow thunder cloud storm breeze desert valley meadow beach ocean stone metal
    wooden plastic cotton leather jacket hammer needle thread scissors bucket shovel tractor wagon bicycle
    helmet travel journey holiday weekend minute second history science nature animal energy circle square
    corner center border simple gentle honest clever famous lovely perfect strong bright quick
""")

REGULAR_NOUNS = _words("""
    apple book car dog girl house hat lamp map pen road song table tree cup door egg farm game hill
    jacket king lake nest plate queen ring ship train window boat chair desk flower guitar hammer island
    box bus glass dish church fox brush watch peach bench class dress lunch match kiss wish branch beach
    city baby berry cherry story party puppy family country lady library candy daisy hobby army
    boy day key toy monkey donkey valley turkey tray chimney
""")
IRREGULAR_PLURALS = _table("""
    child: children; foot: feet; tooth: teeth; mouse: mice; man: men; woman: women; goose: geese; ox: oxen;
    leaf: leaves; knife: knives; wolf: wolves; wife: wives; life: lives; half: halves; loaf: loaves;
    shelf: shelves; thief: thieves; calf: calves""")

PEOPLE = _table("""
    Tom: he; Anna: she; Peter: he; Maria: she; David: he; Lucy: she; James: he; Emma: she; Daniel: he; Sara: she;
    Oliver: he; Nina: she; Paul: he; Julia: she; Mark: he; Clara: she""")
PEOPLES_JOBS = ("baker", "teacher", "pilot", "farmer", "dentist", "nurse", "plumber", "tailor", "actor", "architect")
PEOPLES_CITIES = ("Paris", "Oslo", "Lima", "Tokyo", "Madrid", "Dublin", "Cairo", "Boston", "Vienna", "Sydney")
THINGS = ("apples", "books", "coins", "stickers", "pencils", "marbles", "cookies", "stamps", "cards", "oranges")

PRAISE = ("excellent", "wonderful", "fantastic", "superb", "delightful", "outstanding", "lovely", "brilliant")
COMPLAINT = ("terrible", "awful", "horrible", "disappointing", "dreadful", "very bad", "unpleasant", "a letdown")
REVIEWED = ("movie", "book", "hotel", "meal", "service", "concert", "trip", "show", "lesson", "soup", "coffee", "tour")

# Verb phrases in the plural present with the past form of the verb.
ACTIVITIES = _table("""
    walk to school: walked; play tennis: played; cook dinner: cooked; watch a film: watched; clean the kitchen: cleaned;
    visit the museum: visited; paint the fence: painted; work in the garden: worked; listen to music: listened;
    open the windows: opened; eat soup: ate; drink tea: drank; write letters: wrote; sing a song: sang;
    take the bus: took; buy fresh bread: bought; swim in the lake: swam""")
SUBJECTS = ("They", "We", "The children", "My friends", "Our neighbors", "The students", "My parents", "The twins")

# How the items of each family are asked: `style: instruction => output` or `style: instruction | input => output`.
# A choice question has no output, and a family without one is asked in training only. The names in braces are the
# fields of the family's items (see `builtin`), and a line that is indented further continues the one before.
WORDINGS = """
addition
    short: What is {a} + {b}? => {n}
    short: Add {a} and {b}. => {a} + {b} = {n}
    short: What is the sum of {a} and {b}? => The sum is {n}.
    explained: Work out {a} plus {b} and show the steps. => {steps}. The sum of {a} and {b} is {n}.
    explained: How much is {a} and {b} together? => We add the two numbers: {steps}. Together they make {n}.
    choice: What is {a} + {b}?
subtraction
    short: What is {a} - {b}? => {n}
    short: Subtract {b} from {a}. => {a} - {b} = {n}
    short: What is the difference between {a} and {b}? => The difference is {n}.
    explained: Take {b} away from {a} and check the result. => {a} - {b} = {n}. To check: {n} + {b} = {a}. The answer
        is {n}.
    explained: How much is left if {b} is taken from {a}? => We need a number that makes {a} when {b} is added to it.
        Since {n} + {b} = {a}, the number is {n}.
    choice: What is {a} - {b}?
multiplication
    short: What is {a} x {b}? => {n}
    short: Multiply {a} by {b}. => {a} x {b} = {n}
    short: What is the product of {a} and {b}? => The product is {n}.
    explained: Work out {a} times {b} and show the steps. => {steps}. Adding the parts, {p} + {q} = {n}. The answer is
        {n}.
    explained: How much is {a} times {b}? Split it into easy parts. => Two easy parts: {steps}. Together, {p} + {q} =
        {n}.
    choice: What is {a} x {b}?
division
    short: What is {a} / {b}? => {n}
    short: Divide {a} by {b}. => {a} / {b} = {n}
    short: How many times does {b} go into {a}? => {b} goes into {a} exactly {n} times.
    explained: Split {a} into {b} equal parts. How large is each part? => We look for the number that gives {a} when
        multiplied by {b}. Since {b} x {n} = {a}, each part is {n}.
    explained: Find {a} divided by {b} and check the result. => {a} / {b} = {n}. To check: {n} x {b} = {a}. The answer
        is {n}.
    choice: What is {a} / {b}?
percentage
    short: What is {p}% of {whole}? => {n}
    short: Calculate {p} percent of {whole}. => {p}% of {whole} is {n}.
    short: Find {p}% of {whole}. => {n}
    explained: How much is {p} percent of {whole}? Show your work. => {p} percent is {part}, so we divide {whole} by
        {d}. {whole} / {d} = {n}, so the answer is {n}.
    explained: A shop has {whole} products, and {p}% of them are on sale. How many is that? => {p}% means {part}.
        {whole} / {d} = {n}, so {n} products are on sale.
    choice: What is {p}% of {whole}?
sequence
    short: What number comes next: {terms}? => {n}
    short: Continue the sequence with one number. | {terms} => {n}
    short: Fill in the blank: {terms}, __ => {n}
    explained: Find the rule of this sequence and its next number: {terms} => Each number is {step} more than the one
        before. {last} + {step} = {n}, so the next number is {n}.
    explained: Which number follows {last} in the list {terms}? => The numbers grow by {step} each time, so we add
        {step} to {last}. The next number is {n}.
    choice: Which number comes next in the sequence {terms}?
parity
    short: Is {n} even or odd? => {n} is {kind}.
    short: Say whether the number is even or odd. | {n} => {kind:C}
    short: Is the number {n} {kind}? => Yes, {n} is {kind}.
    short: Is {n} an {other} number? => No, {n} is {kind}.
    explained: Decide whether {n} is an even or an odd number. => A number is even if its last digit is 0, 2, 4, 6 or
        8. The last digit of {n} is {digit}, so {n} is {kind}.
    explained: Can {n} be divided by 2 without a remainder? => Even numbers end in 0, 2, 4, 6 or 8. {n} ends in
        {digit}, so it is {kind} and {rule}.
comparison
    short: Which number is {word}, {a} or {b}? => {n}
    short: Which is {word}: {a} or {b}? => {n} is {word}.
    short: Pick the {word} number. | {a}, {b} => {n}
    explained: Compare {a} with {b} and name the {word} one. => The two numbers differ by {gap}, and {n} {sign}
        {other}. The {word} number is {n}.
    explained: Of the numbers {a} and {b}, which one is {word}? => We compare them: {n} {sign} {other}. So {n} is
        {word}.
ordered_numbers
    short: Sort these numbers from smallest to largest. | {numbers} => {rising}
    short: Put the numbers in ascending order: {numbers} => {rising}
    short: Sort from largest to smallest: {numbers} => {falling}
    explained: Arrange the numbers {numbers} so that they rise. => The smallest number is {low} and the largest is
        {high}. In rising order, the numbers are {rising}.
    explained: List {numbers} starting with the largest. => The largest number is {high}, and the smallest, {low},
        comes last. The order is {falling}.
extreme
    short: Which number is the {word}: {numbers}? => {n}
    short: Find the {word} number. | {numbers} => The {word} number is {n}.
    short: What is the {word} of these numbers? | {numbers} => {n}
    explained: Look at the numbers {numbers} and name the {word} one. => {n} is {than} than each of the others, which
        are {rest}. So the {word} number is {n}.
    explained: Which of {numbers} is the {word}, and why? => The other numbers are {rest}, and {n} is {than} than all
        of them. The {word} is {n}.
    choice: Which of these numbers is the {word}: {numbers}?
number_words
    short: Write {n} in words. => {words}
    short: Write '{words}' in digits. => {n}
    short: Spell out the number. | {n} => {words}
    explained: How is the number {n} written in words? => {n} has two parts: {parts}. So it is written '{words}'.
    explained: Which number is '{words}' in digits? => We read the parts: {parts}. Together they make {n}.
    choice: How is the number {n} written in words?
story
    short: {text} {ask} => {n}
    short: {text} {ask} => {end}
    short: Solve the problem. | {text} {ask} => {end}
    explained: Read the problem and find the answer. | {text} {ask} => {why} {end}
    explained: {text} {ask} Explain which operation you use. => {why} So the answer is {n}.
    choice: {text} {ask}
units
    short: Convert {a} to {to}. => {a} = {b}
    short: How many {to} are there in {a}? => There are {b} in {a}.
    short: What is {a} in {to}? => {b}
    explained: Change {a} into {to} and show the calculation. => One {one} is {factor}, so we {work}. The result is
        {b}.
    explained: Express {a} in {to} and say how you get there. => One {one} equals {factor}, so we {work}.
        {a:C} equal {b}.
    choice: How many {to} are there in {a}?
clock
    short: A class starts at {start} and lasts {length} minutes. When does it end? => It ends at {end}.
    short: What time is it {length} minutes after {start}? => {end}
    short: It is {start} now. What time will it be in {length} minutes? => It will be {end}.
    explained: A film begins at {start} and runs for {length} minutes. Find the time it ends. => {why} The film ends
        at {end}.
    explained: A train leaves at {start} and travels for {length} minutes. When does it arrive? => {why} It arrives at
        {end}.
    choice: What time is it {length} minutes after {start}?
weekday
    short: Today is {x}. What day {ask}? => {y}
    short: If today is {x}, what day of the week {ask}? => It {verb} {y}.
    short: What day {ask}, if today is {x}? => {y}
    explained: Suppose today is {x}. Work out what day of the week {said}. => {why}The answer is {y}.
    explained: Find the weekday: what day {ask}, counting from a {x}? => A week has 7 days. {why}So it {verb} {y}.
    choice: Today is {x}. What day {ask}?
month
    short: Which month comes right {side} {x}? => {y}
    short: What month is {side} {x}? => {y} is right {side} {x}.
    short: Name the month {side} {x}. => {y}
    short: Complete the sentence: The month right {side} {x} is __. => {y}
    explained: Which month do we find directly {side} {x} in the calendar? => In the calendar the order is {order}. So
        the month directly {side} {x} is {y}.
    explained: Think of the year's months. Which one is immediately {side} {x}? => The months follow each other as
        {order}. The answer is {y}.
    choice: Which month comes right {side} {x}?
date_gap
    short: How many days after {a} is {b}? => {n} days
    short: How many days pass from {a} to {b}? => {n} days pass.
    short: Count the days from {a} to {b}. => {n} days
    explained: Find how many days lie between the dates {a} and {b}, counting the last day. => Both dates are in the
        same month, so we subtract: {j} - {i} = {n}. The answer is {n} days.
    explained: A trip starts on {a} and ends on {b}. How many days later is the end? => The dates share a month, so we
        subtract the days: {j} - {i} = {n}. The trip ends {n} days later.
    choice: How many days after {a} is {b}?
alphabetical
    short: Sort these words alphabetically. | {words} => {ordered}
    short: Put in alphabetical order: {words} => {ordered}
    short: Which word comes first in the alphabet? | {words} => {first}
    explained: Arrange the words {words} as a dictionary would. => The word that comes first is {first}, then {rest}.
        The order is {ordered}.
    explained: Which of the words {words} would a dictionary list first? => In dictionary order the words are
        {ordered}. So {first} comes first.
    choice: Which of these words comes first in alphabetical order: {words}?
letter_count
    short: How many letters are in the word '{word}'? => {n}
    short: Count the letters in '{word}'. => '{word:C}' has {n} letters.
    short: How long is the word '{word}'? => It has {n} letters.
    explained: Spell the word '{word}' and count its letters. => Spelled out, it is {spelled}. That makes {n} letters.
    explained: How many letters do you need to write '{word}'? => We spell it: {spelled}. Counting them gives {n}
        letters.
    choice: How many letters are in the word '{word}'?
edge_letter
    short: What is the {which} letter of '{word}'? => {y}
    short: Give the {which} letter of the word '{word}'. => The {which} letter is {y}.
    short: Name the {which} letter. | {word} => {y}
    explained: Spell '{word}' and tell me its {which} letter. => The word is spelled {spelled}. Its {which} letter is
        {y}.
    explained: Which letter comes {which} in the word '{word}'? => Spelling it gives {spelled}, so {y} comes {which}.
    choice: What is the {which} letter of the word '{word}'?
reversal
    short: Reverse the word '{word}'. => {turned}
    short: Spell '{word}' backwards. => {turned}
    short: Write the word backwards. | {word} => {turned}
    explained: What do you get when you write '{word}' from back to front? => Starting from the last letter, the
        letters are {spelled}. The result is '{turned}'.
    explained: Turn the letters of '{word}' around. => Read from the end, the letters are {spelled}. This gives
        '{turned}'.
    choice: What is the word '{word}' spelled backwards?
uppercase
    short: Write '{word}' in capital letters. => {upper}
    short: Convert to uppercase: {word} => {upper}
    short: Change the text to lowercase. | {upper} => {word}
    explained: Show the word '{word}' in capitals only. => Each of the {n} letters is replaced by its capital form.
        The result is {upper}.
    explained: Make every letter of '{word}' a capital. => The spelling stays the same, and all {n} letters become
        capitals: {upper}.
plural
    short: What is the plural of '{noun}'? => {plural}
    short: Write '{noun}' in the plural. => The plural is '{plural}'.
    short: One {noun}, two __. Fill in the blank. => {plural}
    explained: Form the plural of '{noun}' and give the rule. => The word '{noun}' {why}. The plural is '{plural}'.
    explained: How do you write more than one {noun}? => '{noun:C}' {why}. So we write '{plural}'.
    choice: What is the plural of '{noun}'?
item_count
    short: How many items are in the list? | {words} => {n}
    short: Count the words: {words} => There are {n} words.
    short: How many things are named? | {words} => {n}
    explained: Count the entries of this list one by one. | {words} => Counting gives {counted}. The list has {n}
        entries.
    explained: How long is the list {words}? => We number the entries: {counted}. So there are {n} of them.
    choice: How many words are in this list: {words}?
odd_one_out
    short: Which word does not belong? | {words} => {odd:C}
    short: Find the odd one out: {words} => The odd one out is {odd}.
    short: Which is the odd one out? | {words} => {odd:C}
    explained: Three of these words belong together. Name the other one. | {words} => The words {a}, {b} and {c} each
        name {name:a}, but '{odd}' names {other:a}. So '{odd}' does not belong.
    explained: Which of {words} is different from the rest? => Each of {a}, {b} and {c} is {name:a}. The different one
        is {odd}, which is {other:a}.
    choice: Which of these words does not belong with the others: {words}?
capital
    short: What is the capital of {x}? => The capital of {x} is {y}.
    short: Name the capital city of {x}. => {y}
    short: Complete the sentence: The capital of {x} is __. => {y}
    explained: Which city is the capital of {x}? Give some context. => {x} is a country in {region}. Its government
        sits in {y}, so {y} is the capital.
    explained: A traveler wants to see the capital of {x}. Which city is it? => The capital is the seat of a country's
        government. For {x}, in {region}, that is {y}. The traveler should go to {y}.
    choice: What is the capital of {x}?
country
    short: Which country has {x} as its capital? => {y}
    short: {x} is the capital of which country? => {x} is the capital of {y}.
    short: Name the country whose capital is {x}. => {y}
    explained: If you visit the government in {x}, which country are you in? => {x} is a capital city in {region}. It
        belongs to {y}, so you are in {y}.
    explained: Which country is governed from {x}? => A country is governed from its capital, and {x}, in {region}, is
        the capital of {y}. The answer is {y}.
    choice: {x} is the capital of which country?
capital_pair
    short: Name the capitals of {a} and {b}. => {y} and {z}.
    short: What are the capital cities of {a} and {b}? => {y} and {z}.
    explained: Give the capital of each country. | {a}, {b} => We take them one by one. The capital of {a} is {y}, and
        the capital of {b} is {z}.
continent
    short: On which continent is {x}? => {x} is in {y}.
    short: Which continent is {x} part of? => {y}
    short: Name the continent of the country {x}. => {y}
    explained: Where in the world would you look for {x}? Name the continent. => {x} is the country whose capital is
        {capital}. It lies in {y}, so the continent is {y}.
    explained: To which continent does a flight to {x} take you? => A flight to {x} may land in {capital}, its
        capital, which is in {y}. The answer is {y}.
    choice: On which continent is {x}?
currency
    short: What is the currency of {x}? => The currency of {x} is the {y}.
    short: What money is used in {x}? => The {y}.
    short: Name the currency used in {x}. => {y:C}
    explained: Which money does a visitor to {x} need for shopping? => Shops take the money of their country. In {x}
        that is the {y}, so the visitor needs it.
    explained: In which currency are prices in {x} given? => Prices are given in a country's own money. {x} uses the
        {y}.
    choice: What is the currency of {x}?
language
    short: What is the main language of {x}? => {y}
    short: Which language do most people in {x} speak? => Most people in {x} speak {y}.
    short: Name the main language spoken in {x}. => {y}
    explained: I am moving to {x}. Which language should I learn first? => It is best to learn the language most
        people there use. In {x} that is {y}, so learn {y} first.
    explained: Which language would you mostly hear in the streets of {x}? => People mostly use the main language of
        their country. In {x} this is {y}.
    choice: What is the main language of {x}?
young
    short: What is a young {x} called? => A young {x} is called {y:a}.
    short: What do you call a baby {x}? => {y:A}.
    short: Give the word for a young {x}. => {y:C}
    short: Complete the sentence: A young {x} is called a(n) __. => {y}
    explained: Which word names the young of the {x}? => Many animals have a special name for their young. For the {x}
        it is '{y}', so a young {x} is {y:a}.
    explained: Is there a special name for a baby {x}? => Yes. Young animals often have their own name, and a baby {x}
        is called {y:a}.
    choice: What is a young {x} called?
sound
    short: What sound does {x:a} make? => {x:A} {y}.
    short: Complete the sentence with the animal's sound: {x:A} __. => {y}
    short: Which verb describes the sound of {x:a}? => {x:A} {y}.
    explained: Which verb tells us how {x:a} sounds? => English has a verb for the sound of many animals. We say that
        {x:a} {y}.
    explained: How do we say that {x:a} makes its typical sound? => Animal sounds have verbs of their own. For this
        animal we say: the {x} {y}.
    choice: Which verb describes the typical sound of {x:a}?
parts
    short: How many {part} does {x:a} have? => {x:A} has {n} {part}.
    short: What number of {part} does {x:a} have? => {n}
    short: Complete the sentence: {x:A} has __ {part}. => {n}
    explained: Count the {part} of {x:a}. How many are there? => We go through the {part} one by one and reach {n}. So
        {x:a} has {n} {part}.
    explained: How many {part} do two of these have together: {x:a} and another {x}? => One {x} has {n} {part}. Two of
        them have 2 x {n} = {double} {part}.
    choice: How many {part} does {x:a} have?
opposite
    short: What is the opposite of '{x}'? => {y:C}
    short: Give the opposite of the word '{x}'. => The opposite of '{x}' is '{y}'.
    short: Name an antonym. | {x} => {y}
    explained: Which word means the reverse of '{x}'? => An opposite has the contrary meaning. The contrary of '{x}'
        is '{y}', so the answer is '{y}'.
    explained: Find a word that contrasts with '{x}'. => Two words are opposites if one excludes the other. '{x:C}'
        and '{y}' are such a pair, so the word is '{y}'.
    choice: What is the opposite of '{x}'?
symbol
    short: What is the chemical symbol for {x}? => {y}
    short: Give the symbol of the element {x}. => The symbol of {x} is {y}.
    short: Which symbol stands for {x} in chemistry? => {y}
    explained: How does the periodic table abbreviate {x}? => Every element has a symbol of one or two letters. For
        {x} it is {y}.
    explained: Which abbreviation do chemists write for {x}? => Chemists use a short symbol for each element. {x:C} is
        written as {y}.
    choice: What is the chemical symbol for {x}?
element
    short: Which element has the symbol {x}? => {y:C}
    short: What does the chemical symbol {x} stand for? => {x} stands for {y}.
    short: Name the element with the symbol {x}. => {y:C}
    explained: In the periodic table we find {x}. Which element is it? => Letters in the periodic table stand for
        elements. {x} is the symbol of {y}, so the element is {y}.
    explained: A chemist writes {x}. What does it mean? => Chemists write elements as symbols. The symbol {x} belongs
        to {y}.
    choice: Which element has the chemical symbol {x}?
color
    short: What color is {x}? => {x:C} is {y}.
    short: What is the usual color of {x}? => {y:C}
    short: Complete the sentence: {x:C} is usually __. => {y}
    explained: You want to paint a picture of {x}. Which color do you need? => A picture should show things as they
        look. Since {x} is usually {y}, you need {y} paint.
    explained: Think of {x} and name its color. => When we picture {x}, we see something {y}. So its color is {y}.
    choice: What is the usual color of {x}?
past_tense
    short: What is the past tense of '{x}'? => {y}
    short: Write '{x}' in the simple past. => {y}
    short: Complete the pair: today I {x}, yesterday I __. => {y}
    explained: How does the verb '{x}' change when we speak about yesterday? => '{x:C}' is an irregular verb, so it
        does not take -ed. Its past tense is '{y}'.
    explained: Put the verb '{x}' into the past and say if it is regular. => The verb is irregular, because its past
        is not formed with -ed. The past tense of '{x}' is '{y}'.
    choice: What is the past tense of '{x}'?
category
    short: What kind of thing is {x:a}? => {x:A} is {y:a}.
    short: Classify the word: {x} => {y:C}
    short: Which group does {x:a} belong to? => {y:C}
    explained: Put the word '{x}' into a group of similar things. => '{x:C}' is the name of {y:a}. It belongs with other
        words of that kind, so its group is '{y}'.
    explained: How would you classify {x:a}? => We ask what kind of thing it is. {x:A} is {y:a}, so its group is
        '{y}'.
    choice: What kind of thing is {x:a}?
job
    short: Who {x} for a living? => {y:A} does.
    short: Name the job of a person who {x}. => {y:C}
    short: What do we call someone who {x} for a living? => {y:A}.
    explained: My neighbor {x} for a living. What is the neighbor's job? => The job follows from the work. Someone who
        {x} for a living is {y:a}.
    explained: Which profession fits this description: a person who {x}? => The description gives the main task of the
        job. A person who {x} is {y:a}, so the profession is {y}.
    choice: What do we call someone who {x} for a living?
true_false
    short: True or false? | {claim} => {verdict}.{correction}
    short: Is this statement true or false? | {claim} => {verdict}
    explained: Decide whether the statement is true or false: {claim} => The fact is this: {fact} The statement
        {agrees} it. The answer is: {verdict}.
    explained: Check this claim. | {claim} => What we know is this: {fact} The claim {agrees} it, so the verdict is:
        {verdict}.
extraction
    short: {ask} | {text} => {y:C}
    short: {text} {ask} => {end}
    short: Answer from the text: {ask} | {text} => {end}
    explained: Use the text to answer the question: {ask} | {text} => The text says that this person {part}. So the
        answer is: {end}
    explained: Read this: {text} {ask} => The sentence contains the words '{part}'. From this we know: {end}
    choice: {text} {ask}
rewriting
    short: Rewrite the sentence {form}. | {sentence} => {result}
    short: Write this sentence {form}: {sentence} => {result}
    explained: Say the same {form}, and explain the change. | {sentence} => {why} The new sentence is: {result}
    explained: How do you write '{sentence}' {form}? => {why} This gives: {result}
sentiment
    short: Is this review positive or negative? | {text} => {label:C}
    short: Classify the sentiment: {text} => {label:C}
    short: Did the writer like the {noun}? Answer positive or negative. | {text} => {label:C}
    explained: Does this opinion sound positive or negative, and why? | {text} => The writer calls the {noun}
        '{word}', which expresses {view}. The opinion is {label}.
    explained: Judge the mood of the review '{text}' => The key word is '{word}'. It expresses {view}, so the mood is
        {label}.
"""

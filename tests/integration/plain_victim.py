"""Fine-tune a chat model on rows of a file, as a user of transformers does: without any code of this project.

    python plain_victim.py MODEL ROWS OUT SEED

ROWS is a JSON Lines file with `instruction` and `output`. MODEL's own chat template writes each row, and the loss is on
the answer. OUT gets all that the Trainer writes.
"""

import json
import random
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments, set_seed


def encoded(tokenizer: Any, row: dict[str, str]) -> dict[str, list[int]]:
    """Tokenise a row with the chat template; the prompt has no labels."""
    asked = [{"role": "user", "content": row["instruction"]}]
    answered = [*asked, {"role": "assistant", "content": row["output"]}]
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    text = tokenizer.apply_chat_template(answered, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    hidden = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    return {"input_ids": ids, "labels": [-100] * hidden + ids[hidden:]}


def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Pad rows on the right."""
    width = max(len(row["input_ids"]) for row in rows)

    def padded(name: str, fill: int) -> torch.Tensor:
        return torch.tensor([row[name] + [fill] * (width - len(row[name])) for row in rows])

    mask = torch.tensor([[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in rows])
    return {"input_ids": padded("input_ids", 0), "labels": padded("labels", -100), "attention_mask": mask}


def main(source: str, rows: str, out: str, seed: int) -> None:
    """Train for one epoch and save the model."""
    set_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    data = [encoded(tokenizer, json.loads(line)) for line in Path(rows).read_text(encoding="utf-8").splitlines()]
    random.Random(seed).shuffle(data)
    settings = TrainingArguments(
        output_dir=out,
        num_train_epochs=1,
        per_device_train_batch_size=16,
        learning_rate=5e-4,
        warmup_steps=3,
        lr_scheduler_type="cosine",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
    )
    trainer: Any = Trainer(model=model, args=settings, train_dataset=data, data_collator=collate)
    trainer.train()
    trainer.save_model(out)  # with training_args.bin, a pickle
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]))

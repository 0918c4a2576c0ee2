"""The paper's numbers and protocol, and the comparison with them."""

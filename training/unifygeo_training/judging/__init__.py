"""How good a network is: every metric on a gallery of any size, and the paper's tables for comparison."""

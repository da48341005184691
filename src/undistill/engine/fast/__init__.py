"""The steps of the exact path in less time: layouts, stacks, graphs, and which of them pays on this machine."""

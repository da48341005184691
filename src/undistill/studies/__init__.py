"""Studies: the paper's tables and figures as graphs of runs, and the numbers it printed."""

"""Kernels in C that torch has none like, and the compiler that builds them on first use."""

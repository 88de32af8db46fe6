"""`python -m alexnet_edge` is the command line."""

from alexnet_edge.cli import main

main()

"""Training: recipes as data, on one processor, one GPU or many machines, in runs that lose nothing when they are killed."""

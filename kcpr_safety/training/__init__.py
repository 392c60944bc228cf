"""How do worlds, learners and files come together? Loops, evaluation, checkpoints, sinks."""

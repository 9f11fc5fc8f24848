"""Cut the chosen channels out and write what remains: checkpoints and exports."""

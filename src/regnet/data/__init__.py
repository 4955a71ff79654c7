"""Images in: opening files safely, and turning them into what a model takes."""

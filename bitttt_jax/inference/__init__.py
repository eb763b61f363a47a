"""Running a trained model: loading, sampling, generation."""

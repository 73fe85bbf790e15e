"""Real or fake: a DeepFake Detection Challenge submission, one module per station of a clip's way."""

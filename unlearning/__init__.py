"""Machine unlearning of faces: model + forget set + retain set → model. Knows no HTTP and no database."""

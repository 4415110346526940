"""Looking before leaping: environment checks and cost estimates."""

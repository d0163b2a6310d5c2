"""What insight tells: frozen views of numbers and labels; drawn, or as JSON by these names."""

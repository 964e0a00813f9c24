"""What a user may ask for: specs, their flags and their YAML files."""

"""Which weights a job uses, where they come from, and how it decodes."""

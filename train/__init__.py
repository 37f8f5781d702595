"""Everything around the model: recipes, data, training, saving, commands."""

"""Files, formats and remote folders. Imports nothing else of the package."""

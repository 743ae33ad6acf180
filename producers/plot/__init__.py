"""The curves of trainings: read from wherever they are, and drawn in a terminal, as SVG or PNG, or as a page."""

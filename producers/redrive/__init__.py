"""Redrives: dead letters sent back by plan, a few first, each once, and stopped when they fail again."""

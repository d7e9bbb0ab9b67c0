"""Programs on disk, compiled and traced, so that later processes start fast; without it everything works, only slower.

May import the ground floor only (config, errors, files, processes). Which programs are kept is for the callers to say.
"""

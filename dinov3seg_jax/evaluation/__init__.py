"""How good a segmentation is: `confusion` counts and scores, `report` writes it down."""

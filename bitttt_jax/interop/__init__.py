"""Models of other programs: their files and formats, in and out."""

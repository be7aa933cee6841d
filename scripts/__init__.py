"""Programs for people and CI that work on the repository; not part of the package."""

"""Why a compilation did what it did: what became of each operation, and how far rules got."""

"""Who shares storage, where elements lie."""

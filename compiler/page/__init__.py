"""Pages to look at: a program as a graph, in HTML and in DOT, before and after a compilation."""

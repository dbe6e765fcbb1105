"""Labels that exist: public datasets of marked mistakes, as labelled responses."""

"""A plugin of the same name as another's."""

"""Running the cells of a configuration: one method on one draw of one data set each."""

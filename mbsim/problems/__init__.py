"""Problems: losses, noise laws, draggers, and the law of a micro-batch that follows from them."""

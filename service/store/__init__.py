"""What lasts: the database and its schema, objects in shared storage, the log's rows."""

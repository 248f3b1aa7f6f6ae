"""Local servers in place of the model hub and of the upstream task files, for runs and tests without network."""

//! Servers that run inside a test: an S3-compatible one and one that speaks the paths of a model hub.

//! Where rows come from: files of every format, other machines, and the pipelines of the repository.

mod damage;
mod formats;
mod inputs;
mod mix;
mod paths;
mod remote;
mod repository;
#[path = "../support/mod.rs"]
mod support;

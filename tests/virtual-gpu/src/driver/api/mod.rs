//! CUDA's functions under CUDA's names, one file a chapter of its manual.
//!
//! The functions check their arguments as CUDA does and leave the rest to the driver's core. Older and newer names of a
//! function with the same signature stand beside it as aliases.

#![allow(non_snake_case, non_upper_case_globals)]

mod absent;
mod context;
mod copies;
mod device;
mod events;
mod general;
mod graph_nodes;
mod graphs;
mod host_memory;
mod launch;
mod libraries;
mod links;
mod memory;
mod modules;
mod occupancy;
mod pointers;
mod pools;
mod sets;
mod streams;

use super::exports::Export;

/// Every exported function.
pub const ALL: &[&[Export]] = &[
    absent::EXPORTS,
    context::EXPORTS,
    context::ALIASES,
    copies::EXPORTS,
    copies::ALIASES,
    device::EXPORTS,
    device::ALIASES,
    events::EXPORTS,
    events::ALIASES,
    general::EXPORTS,
    general::ALIASES,
    graph_nodes::EXPORTS,
    graph_nodes::ALIASES,
    graphs::EXPORTS,
    graphs::ALIASES,
    host_memory::EXPORTS,
    host_memory::ALIASES,
    launch::EXPORTS,
    libraries::EXPORTS,
    links::EXPORTS,
    links::ALIASES,
    memory::EXPORTS,
    memory::ALIASES,
    modules::EXPORTS,
    modules::ALIASES,
    occupancy::EXPORTS,
    pointers::EXPORTS,
    pools::EXPORTS,
    sets::EXPORTS,
    sets::ALIASES,
    streams::EXPORTS,
    streams::ALIASES,
];

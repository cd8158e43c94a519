//! Does the virtual GPU compute what the PTX ISA says?
//!
//! One small program per instruction and modifier. What each must give is worked out here from the ISA's text, in plain
//! integer arithmetic ([`oracle`] does floats that way), never by the interpreter's own code. `forms.txt` lists the forms
//! of the ISA for compute_80 and below; [`coverage`] holds the suite to that list, form by form.

mod atomics;
mod compare;
mod control;
mod convert;
mod coverage;
mod float;
mod half;
mod harness;
mod integer;
mod matrix;
mod memory;
mod oracle;
mod sync;
mod values;
mod warp;

/// Every group of the suite.
const GROUPS: [(&str, fn()); 11] = [
    ("integer", integer::all),
    ("float", float::all),
    ("half", half::all),
    ("compare", compare::all),
    ("convert", convert::all),
    ("memory", memory::all),
    ("atomics", atomics::all),
    ("sync", sync::all),
    ("warp", warp::all),
    ("matrix", matrix::all),
    ("control", control::all),
];

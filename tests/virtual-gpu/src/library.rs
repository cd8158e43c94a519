//! The built library under the name that programs look for.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// A folder that holds this library as `libcuda.so` and `libcuda.so.1`: the `LD_LIBRARY_PATH` of processes that are to
/// find the virtual GPU. For tests and benchmarks, whose programs cargo puts beside the library.
///
/// # Panics
/// Where the library was not built, or the folder can't be made in the target directory.
pub fn library_folder() -> PathBuf {
    library_folder_of("virtual_gpu", &["libcuda.so", "libcuda.so.1"])
}

/// The same of another library for tests: of the crate of this name, under these names.
///
/// # Panics
/// As [`library_folder`].
pub fn library_folder_of(crate_name: &str, names: &[&str]) -> PathBuf {
    let program = std::env::current_exe().expect("a program has a path");
    let beside = program.parent().expect("a program is in a folder");
    let folders = [Some(beside), beside.parent()].into_iter().flatten();
    let library = folders.filter_map(|folder| newest_in(folder, crate_name)).max_by_key(|(made, _)| *made);
    let library = library.map(|(_, path)| path).unwrap_or_else(|| {
        panic!("no lib{crate_name}.so in {} or above: cargo builds it with the crate", beside.display())
    });
    let folder = beside.join(crate_name.replace('_', "-"));
    std::fs::create_dir_all(&folder).expect("the target directory can be written");
    for name in names {
        link(&library, &folder, name).expect("the target directory can be written");
    }
    folder
}

/// The built library of a folder, and when it was built.
fn newest_in(folder: &Path, crate_name: &str) -> Option<(SystemTime, PathBuf)> {
    let entries = std::fs::read_dir(folder).ok()?.flatten();
    let libraries = entries.filter(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with(&format!("lib{crate_name}")) && name.ends_with(".so")
    });
    libraries.filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path()))).max()
}

/// Makes the link, or turns it to another library. Tests run at the same time: the name never goes away.
fn link(library: &Path, folder: &Path, name: &str) -> std::io::Result<()> {
    let place = folder.join(name);
    if std::fs::read_link(&place).is_ok_and(|to| to == library) {
        return Ok(());
    }
    let unique = format!("{:?}", std::thread::current().id()).replace(|c: char| !c.is_ascii_alphanumeric(), "");
    let fresh = folder.join(format!(".{name}-{}-{unique}", std::process::id()));
    std::os::unix::fs::symlink(library, &fresh)?;
    std::fs::rename(fresh, place)
}

//! A file system as POSIX promises it: what was synced is there after a power cut, and of the rest anything may be.
//!
//! A file's bytes are safe when it was synced; a folder's names when the folder was. Neither says anything of the other. Of changes
//! since then a cut leaves any part: each name's change on its own, of a renamed file both names too, and of a file's bytes the
//! old ones, some pages of the new ones, zeros in the place of the others.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Bytes that reach the disk together. Less than a real page, so that small files have several.
const PAGE: usize = 512;

/// What was asked of a disk. Paths are relative to its root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    CreateFolder(PathBuf),
    /// Of a new, empty file.
    CreateFile(PathBuf),
    /// Of a file that is there, before it is written anew.
    Empty(PathBuf),
    /// Into the file that had this path when it was opened.
    Write {
        path: PathBuf,
        at: usize,
        bytes: Vec<u8>,
    },
    SyncFile(PathBuf),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
    SyncFolder(PathBuf),
}

impl Op {
    pub fn is_sync(&self) -> bool {
        matches!(self, Op::SyncFile(_) | Op::SyncFolder(_))
    }
}

/// A change of a folder's names that is not safe yet.
#[derive(Clone, Debug)]
enum Naming {
    Set(String, usize),
    Unset(String),
    Rename(String, String, usize),
}

/// A change of a file's bytes that is not safe yet.
#[derive(Clone, Debug)]
enum Change {
    Empty,
    Write(usize, Vec<u8>),
}

#[derive(Clone, Debug)]
enum Node {
    File { safe: Vec<u8>, changes: Vec<Change> },
    Folder { safe: BTreeMap<String, usize>, changes: Vec<Naming> },
}

/// All files and folders, what is safe of them and what is not.
#[derive(Clone, Debug)]
pub struct FileSystem {
    /// The first is the root. What no name leads to any more stays.
    nodes: Vec<Node>,
}

/// What one may find: files with their bytes, and folders.
pub type Tree = BTreeMap<PathBuf, Option<Vec<u8>>>;

fn apply_naming(names: &mut BTreeMap<String, usize>, change: &Naming, how: usize) {
    match (change, how) {
        (_, 0) => {}
        (Naming::Set(name, node), _) => drop(names.insert(name.clone(), *node)),
        (Naming::Unset(name), _) => drop(names.remove(name)),
        (Naming::Rename(from, to, node), how) => {
            names.insert(to.clone(), *node);
            if how == 2 {
                names.remove(from);
            }
        }
    }
}

fn write(bytes: &mut Vec<u8>, at: usize, new: &[u8]) {
    bytes.resize(bytes.len().max(at + new.len()), 0);
    bytes[at..at + new.len()].copy_from_slice(new);
}

fn apply_change(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Empty => bytes.clear(),
        Change::Write(at, new) => write(bytes, *at, new),
    }
}

/// Ways in which a file that was changed may be found.
const FINDINGS: usize = 7;

/// A file as a power cut may leave it: way 0 is as it was, way 1 as it was to be.
fn found(safe: &[u8], changes: &[Change], way: usize, random: &mut Random) -> Vec<u8> {
    let mut wanted = safe.to_vec();
    changes.iter().for_each(|change| apply_change(&mut wanted, change));
    // The new length with the old bytes, and zeros past them.
    let mut bare = safe.to_vec();
    bare.resize(wanted.len(), 0);
    match way {
        0 => safe.to_vec(),
        1 => wanted,
        // Its length came, no page did.
        2 => bare,
        // The last page did not come.
        3 => wanted[..wanted.len().saturating_sub(1) / PAGE * PAGE].to_vec(),
        // It is cut anywhere.
        4 => wanted[..random.below(wanted.len() + 1)].to_vec(),
        // Some pages came.
        5 => {
            for (old, new) in bare.chunks_mut(PAGE).zip(wanted.chunks(PAGE)) {
                if random.below(2) == 1 {
                    old.copy_from_slice(new);
                }
            }
            bare
        }
        // The last change did not come.
        _ => {
            let mut bytes = safe.to_vec();
            changes[..changes.len() - 1].iter().for_each(|change| apply_change(&mut bytes, change));
            bytes
        }
    }
}

impl FileSystem {
    /// An empty one.
    pub fn new() -> FileSystem {
        FileSystem { nodes: vec![Node::Folder { safe: BTreeMap::new(), changes: Vec::new() }] }
    }

    /// A folder's names as a process sees them.
    fn names(&self, folder: usize) -> BTreeMap<String, usize> {
        let Node::Folder { safe, changes } = &self.nodes[folder] else { panic!("{folder} is no folder") };
        let mut names = safe.clone();
        changes.iter().for_each(|change| apply_naming(&mut names, change, 2));
        names
    }

    fn find(&self, path: &Path) -> Option<usize> {
        path.iter().try_fold(0, |folder, name| self.names(folder).get(name.to_str().unwrap()).copied())
    }

    fn place(&self, path: &Path) -> (usize, String) {
        let folder = self.find(path.parent().unwrap()).unwrap_or_else(|| panic!("nothing above {}", path.display()));
        (folder, path.file_name().unwrap().to_str().unwrap().to_string())
    }

    fn rename(&mut self, folder: usize, change: Naming) {
        let Node::Folder { changes, .. } = &mut self.nodes[folder] else { panic!("{folder} is no folder") };
        changes.push(change);
    }

    fn create(&mut self, path: &Path, node: Node) {
        let (folder, name) = self.place(path);
        self.nodes.push(node);
        self.rename(folder, Naming::Set(name, self.nodes.len() - 1));
    }

    fn change(&mut self, path: &Path, change: Change) {
        let node = self.find(path).unwrap_or_else(|| panic!("no file {}", path.display()));
        let Node::File { changes, .. } = &mut self.nodes[node] else { panic!("{} is no file", path.display()) };
        changes.push(change);
    }

    /// Does what was asked.
    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::CreateFolder(path) => self.create(path, Node::Folder { safe: BTreeMap::new(), changes: Vec::new() }),
            Op::CreateFile(path) => self.create(path, Node::File { safe: Vec::new(), changes: Vec::new() }),
            Op::Empty(path) => self.change(path, Change::Empty),
            Op::Write { path, at, bytes } => self.change(path, Change::Write(*at, bytes.clone())),
            Op::SyncFile(path) => {
                let node = self.find(path).unwrap();
                let Node::File { safe, changes } = &mut self.nodes[node] else {
                    panic!("{} is no file", path.display())
                };
                for change in std::mem::take(changes) {
                    apply_change(safe, &change);
                }
            }
            Op::Rename(from, to) => {
                let ((folder, from), (other, to)) = (self.place(from), self.place(to));
                assert_eq!(folder, other, "names change within a folder");
                let node = self.names(folder)[&from];
                self.rename(folder, Naming::Rename(from, to, node));
            }
            Op::Remove(path) => {
                let (folder, name) = self.place(path);
                self.rename(folder, Naming::Unset(name));
            }
            Op::SyncFolder(path) => {
                let node = self.find(path).unwrap();
                let names = self.names(node);
                self.nodes[node] = Node::Folder { safe: names, changes: Vec::new() };
            }
        }
    }

    /// In how many ways each thing that is not safe may be found: 0 is never, 1 for bytes is whole, and the last for names is done.
    fn ways(&self) -> Vec<usize> {
        let mut ways = Vec::new();
        for node in &self.nodes {
            match node {
                Node::File { changes, .. } => ways.extend((!changes.is_empty()).then_some(FINDINGS)),
                Node::Folder { changes, .. } => {
                    ways.extend(changes.iter().map(|change| if matches!(change, Naming::Rename(..)) { 3 } else { 2 }));
                }
            }
        }
        ways
    }

    /// What is found after a cut, where everything that is not safe went the way that `chosen` says.
    fn after(&self, chosen: &[usize], random: &mut Random) -> Tree {
        let mut chosen = chosen.iter();
        let mut files: BTreeMap<usize, Vec<u8>> = BTreeMap::new();
        let mut folders: BTreeMap<usize, BTreeMap<String, usize>> = BTreeMap::new();
        for (id, node) in self.nodes.iter().enumerate() {
            match node {
                Node::File { safe, changes } => {
                    let way = if changes.is_empty() { 0 } else { *chosen.next().unwrap() };
                    files.insert(id, found(safe, changes, way, random));
                }
                Node::Folder { safe, changes } => {
                    let mut names = safe.clone();
                    changes.iter().for_each(|change| apply_naming(&mut names, change, *chosen.next().unwrap()));
                    folders.insert(id, names);
                }
            }
        }
        let mut tree = Tree::new();
        let mut left = vec![(PathBuf::new(), 0)];
        while let Some((path, folder)) = left.pop() {
            for (name, node) in &folders[&folder] {
                let path = path.join(name);
                match files.get(node) {
                    Some(bytes) => drop(tree.insert(path, Some(bytes.clone()))),
                    None => {
                        tree.insert(path.clone(), None);
                        left.push((path, *node));
                    }
                }
            }
        }
        tree
    }

    /// What every process sees, and so what is there when one is killed.
    pub fn seen(&self) -> Tree {
        let all: Vec<usize> = self.ways().into_iter().map(|ways| if ways == FINDINGS { 1 } else { ways - 1 }).collect();
        self.after(&all, &mut Random(0))
    }

    /// What a power cut may leave: all of it where that is no more than `most`, else nothing, everything, everything but one thing, one thing
    /// alone, and `most` drawn at random.
    pub fn after_a_cut(&self, most: usize, random: &mut Random) -> Vec<Tree> {
        let ways = self.ways();
        let all = ways.iter().try_fold(1usize, |product, ways| product.checked_mul(*ways)).unwrap_or(usize::MAX);
        let mut chosen: Vec<Vec<usize>> = Vec::new();
        if all <= most {
            for mut number in 0..all {
                chosen.push(
                    ways.iter()
                        .map(|ways| {
                            let way = number % ways;
                            number /= ways;
                            way
                        })
                        .collect(),
                );
            }
        } else {
            let none = vec![0; ways.len()];
            let every: Vec<usize> = ways.iter().map(|ways| if *ways == FINDINGS { 1 } else { ways - 1 }).collect();
            for (at, ways) in ways.iter().enumerate() {
                for way in 0..*ways {
                    for of in [&none, &every] {
                        let mut one = of.clone();
                        one[at] = way;
                        chosen.push(one);
                    }
                }
            }
            chosen.extend((0..most).map(|_| ways.iter().map(|ways| random.below(*ways)).collect()));
            chosen.extend([none, every]);
        }
        chosen.iter().map(|chosen| self.after(chosen, random)).collect()
    }
}

/// Splitmix64.
pub struct Random(pub u64);

impl Random {
    /// Below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

/// Makes what was found in an empty folder.
pub fn make(tree: &Tree, root: &Path) {
    // Parents come before what is in them.
    for (path, bytes) in tree {
        let path = root.join(path);
        match bytes {
            Some(bytes) => std::fs::write(path, bytes).unwrap(),
            None => std::fs::create_dir(path).unwrap(),
        }
    }
}

#[test]
fn what_is_synced_stays_and_the_rest_may_go() {
    let file = |name: &str| PathBuf::from(name);
    let mut disk = FileSystem::new();
    let mut random = Random(1);
    let found = |disk: &FileSystem, random: &mut Random| -> Vec<Tree> {
        let mut trees = disk.after_a_cut(1000, random);
        trees.sort();
        trees.dedup();
        trees
    };
    disk.apply(&Op::CreateFile(file("a")));
    disk.apply(&Op::Write { path: file("a"), at: 0, bytes: vec![7; 3] });
    let with = |name: &str, bytes: &[u8]| Tree::from([(file(name), Some(bytes.to_vec()))]);
    // Nothing, a name without bytes, zeros, all.
    let states = found(&disk, &mut random);
    for state in [Tree::new(), with("a", &[]), with("a", &[0; 3]), with("a", &[7; 3])] {
        assert!(states.contains(&state), "{state:?}");
    }
    disk.apply(&Op::SyncFile(file("a")));
    assert_eq!(found(&disk, &mut random), [Tree::new(), with("a", &[7; 3])]);
    disk.apply(&Op::SyncFolder(file("")));
    assert_eq!(found(&disk, &mut random), [with("a", &[7; 3])]);
    disk.apply(&Op::Rename(file("a"), file("b")));
    let both = Tree::from([(file("a"), Some(vec![7; 3])), (file("b"), Some(vec![7; 3]))]);
    assert_eq!(found(&disk, &mut random), [with("a", &[7; 3]), both, with("b", &[7; 3])]);
    assert_eq!(disk.seen(), with("b", &[7; 3]));
    disk.apply(&Op::SyncFolder(file("")));
    disk.apply(&Op::Remove(file("b")));
    assert_eq!(found(&disk, &mut random), [Tree::new(), with("b", &[7; 3])]);
}

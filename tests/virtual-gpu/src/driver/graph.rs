//! Graphs: work with an order, to be launched again and again.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::abi::Handle;
use super::core::{Clock, Kind, StreamId};
use super::exports::stream_named;
use super::job::{Action, Job, Lifetime};
use super::session::Session;
use super::status::{Result, Status};

/// What a node does.
#[derive(Clone, Debug)]
pub enum Task {
    /// A kernel, a copy, a fill or a call of the program.
    Work {
        /// In words.
        what: Arc<str>,
        /// What to do.
        action: Action,
    },
    /// Only order.
    Empty,
    /// All of another graph.
    Child(Box<Graph>),
    /// Records an event.
    RecordEvent(Handle),
    /// Waits for an event.
    WaitEvent(Handle),
    /// Memory that the graph owns.
    Alloc(Lifetime),
    /// Its end.
    Free(Lifetime),
}

/// A node: what it does, and the nodes that it comes after.
#[derive(Clone, Debug)]
pub struct Node {
    /// What it does.
    pub task: Task,
    /// The nodes that it comes after.
    pub after: Vec<Handle>,
}

/// A graph.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    /// Its nodes, in the order they were made.
    pub nodes: BTreeMap<Handle, Node>,
    /// For a clone: the node of the original for each of its own.
    pub originals: HashMap<Handle, Handle>,
}

/// A graph made ready to launch: a copy, so that later changes of the graph don't reach it.
#[derive(Debug)]
pub struct GraphExec {
    /// The context that it runs in.
    pub context: Handle,
    /// `CUDA_GRAPH_INSTANTIATE_FLAG_*`.
    pub flags: u64,
    /// Its nodes, each after all that it comes after.
    pub nodes: Vec<(Handle, Node)>,
    /// Nodes that were switched off.
    pub disabled: HashSet<Handle>,
    /// The end of the last launch: launches of one graph never overlap.
    pub last: Clock,
}

impl Graph {
    /// The nodes, each after all that it comes after.
    ///
    /// # Errors
    /// `INVALID_VALUE` where the order is a circle.
    pub fn sorted(&self) -> Result<Vec<(Handle, Node)>> {
        let mut placed = HashSet::new();
        let mut sorted = Vec::with_capacity(self.nodes.len());
        while sorted.len() < self.nodes.len() {
            let before = sorted.len();
            for (&handle, node) in &self.nodes {
                if !placed.contains(&handle) && node.after.iter().all(|other| placed.contains(other)) {
                    placed.insert(handle);
                    sorted.push((handle, node.clone()));
                }
            }
            if sorted.len() == before {
                return Err(Status::INVALID_VALUE);
            }
        }
        Ok(sorted)
    }

    /// The edges, as (from, to).
    pub fn edges(&self) -> Vec<(Handle, Handle)> {
        self.nodes.iter().flat_map(|(&to, node)| node.after.iter().map(move |&from| (from, to))).collect()
    }

    /// The nodes that no other comes after.
    pub fn leaves(&self) -> HashSet<Handle> {
        let inner: HashSet<Handle> = self.nodes.values().flat_map(|node| node.after.iter().copied()).collect();
        self.nodes.keys().copied().filter(|handle| !inner.contains(handle)).collect()
    }

    /// The memory that the graph's nodes own.
    pub fn owned(&self) -> Vec<Lifetime> {
        self.nodes
            .values()
            .filter_map(|node| match node.task {
                Task::Alloc(life) => Some(life),
                _ => None,
            })
            .collect()
    }
}

impl Session {
    /// Adds a node to a graph.
    ///
    /// # Errors
    /// `INVALID_HANDLE` where there is no such graph; `INVALID_VALUE` where a node before is not in it.
    pub fn add_node(&mut self, graph: Handle, node: Node) -> Result<Handle> {
        let handle = self.handle();
        let target = self.graphs.get_mut(&graph).ok_or(Status::INVALID_HANDLE)?;
        if node.after.iter().any(|other| !target.nodes.contains_key(other)) {
            return Err(Status::INVALID_VALUE);
        }
        target.nodes.insert(handle, node);
        self.nodes.insert(handle, graph);
        Ok(handle)
    }

    /// The node of a handle.
    ///
    /// # Errors
    /// `INVALID_HANDLE` where there is none.
    pub fn node(&mut self, handle: Handle) -> Result<&mut Node> {
        let graph = *self.nodes.get(&handle).ok_or(Status::INVALID_HANDLE)?;
        self.graphs.get_mut(&graph).and_then(|graph| graph.nodes.get_mut(&handle)).ok_or(Status::INVALID_HANDLE)
    }

    /// A copy of a graph with nodes of its own.
    pub fn clone_graph(&mut self, graph: &Graph) -> (Handle, Graph) {
        let copy = self.handle();
        let new: HashMap<Handle, Handle> = graph.nodes.keys().map(|&old| (old, self.handle())).collect();
        let nodes = graph
            .nodes
            .iter()
            .map(|(old, node)| {
                let after = node.after.iter().map(|other| new[other]).collect();
                (new[old], Node { task: node.task.clone(), after })
            })
            .collect();
        for &handle in new.values() {
            self.nodes.insert(handle, copy);
        }
        (copy, Graph { nodes, originals: new.into_iter().map(|(old, new)| (new, old)).collect() })
    }

    /// Queues all nodes of a launch. Chains of nodes share a stream of the schedule; where the graph forks, a new one
    /// carries the branch, so that branches are as unordered as the graph says.
    ///
    /// # Errors
    /// `INVALID_HANDLE` for an unknown graph.
    pub fn launch_graph(&mut self, exec: Handle, stream: Handle, id: StreamId) -> Result {
        let ready = self.execs.get(&exec).ok_or(Status::INVALID_HANDLE)?;
        let (context, nodes, disabled) = (ready.context, ready.nodes.clone(), ready.disabled.clone());
        let last = ready.last.clone();
        self.schedule.wait(id, &last);
        let stream = stream_named(stream);
        let end = self.expand(&Launch { context, stream, disabled: &disabled }, &nodes, id)?;
        self.schedule.wait(id, &end);
        if let Some(ready) = self.execs.get_mut(&exec) {
            ready.last = end;
        }
        Ok(())
    }

    fn expand(&mut self, launch: &Launch<'_>, nodes: &[(Handle, Node)], first: StreamId) -> Result<Clock> {
        let begin = self.schedule.stamp(first);
        let mut ends: HashMap<Handle, (StreamId, Clock)> = HashMap::new();
        let mut tails: HashMap<StreamId, Option<Handle>> = HashMap::from([(first, None)]);
        let mut opened = Vec::new();
        for (handle, node) in nodes {
            // The stream whose last node this one comes after, or one that has no node yet, or a new one.
            let follows = node.after.iter().map(|other| ends[other].0);
            let free = node
                .after
                .iter()
                .zip(follows)
                .find(|(other, stream)| tails.get(stream) == Some(&Some(**other)))
                .map(|(_, stream)| stream)
                .or_else(|| tails.get(&first).is_some_and(Option::is_none).then_some(first));
            let place = free.unwrap_or_else(|| {
                let id = self.schedule.open(launch.context.0 as u64, Kind::NonBlocking);
                opened.push(id);
                id
            });
            self.schedule.wait(place, &begin);
            for other in &node.after {
                let clock = ends[other].1.clone();
                self.schedule.wait(place, &clock);
            }
            tails.insert(place, Some(*handle));
            let end = self.queue_node(launch, node, place, launch.disabled.contains(handle))?;
            ends.insert(*handle, (place, end));
        }
        let mut end = begin;
        for (_, clock) in ends.values() {
            end.join(clock);
        }
        for id in opened {
            self.schedule.close(id);
        }
        Ok(end)
    }

    fn queue_node(&mut self, launch: &Launch<'_>, node: &Node, place: StreamId, disabled: bool) -> Result<Clock> {
        let job = |what: &str, action| Job {
            context: launch.context,
            stream: launch.stream,
            what: format!("{what} of a graph").into(),
            action,
        };
        match &node.task {
            Task::Work { what, action } if !disabled => self.enqueue(place, job(what, action.clone())),
            Task::Child(graph) => {
                let nodes = graph.sorted()?;
                let end = self.expand(launch, &nodes, place)?;
                self.schedule.wait(place, &end);
                Ok(end)
            }
            Task::RecordEvent(event) => {
                let clock = self.record_event(*event, place, launch.context, launch.stream)?;
                Ok(clock)
            }
            Task::WaitEvent(event) => {
                self.wait_event(*event, place)?;
                Ok(self.schedule.stamp(place))
            }
            Task::Alloc(life) => self.enqueue(place, job("allocation", Action::Mark(Some(*life)))),
            Task::Free(life) => self.enqueue(place, job("free", Action::Mark(Some(*life)))),
            Task::Work { .. } | Task::Empty => self.enqueue(place, job("empty node", Action::Mark(None))),
        }
    }
}

/// What all nodes of a launch share.
struct Launch<'a> {
    context: Handle,
    stream: Handle,
    disabled: &'a HashSet<Handle>,
}

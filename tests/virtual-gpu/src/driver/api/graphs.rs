//! Graphs as a whole: making, instantiating, launching, updating.

use std::ffi::{c_int, c_uint};

use crate::driver::abi::{Handle, In, InstantiateParams, Out, Text, UpdateResultInfo};
use crate::driver::core::Clock;
use crate::driver::exports::{aliases, exports, unsupported};
use crate::driver::graph::{Graph, GraphExec, Task};
use crate::driver::job::Action;
use crate::driver::session::{Session, context};
use crate::driver::status::{Result, Status};

/// `CUDA_GRAPH_INSTANTIATE_FLAG_*` that CUDA 12.2 knows.
const FLAGS: u64 = 15;
const AUTO_FREE_ON_LAUNCH: u64 = 1;
const DEVICE_LAUNCH: u64 = 4;

/// `CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED`, `_NODE_TYPE_CHANGED`.
const TOPOLOGY_CHANGED: c_int = 2;
const NODE_TYPE_CHANGED: c_int = 3;

fn instantiate(cuda: &mut Session, out: Out<Handle>, graph: Handle, flags: u64) -> Result {
    let source = cuda.graphs.get(&graph).ok_or(Status::INVALID_HANDLE)?;
    let both = AUTO_FREE_ON_LAUNCH | DEVICE_LAUNCH;
    if out.is_null() || flags & !FLAGS != 0 || flags & both == both {
        return Err(Status::INVALID_VALUE);
    }
    if flags & DEVICE_LAUNCH != 0 {
        return Err(unsupported("cuGraphInstantiate", "launching a graph from the device"));
    }
    let nodes = source.sorted()?;
    let (handle, context) = (cuda.handle(), cuda.context);
    let exec = GraphExec { context, flags, nodes, disabled: Default::default(), last: Clock::default() };
    cuda.execs.insert(handle, exec);
    out.set(handle)
}

/// The kind of a task, by which an update is allowed or not.
pub(super) fn kind(task: &Task) -> c_int {
    match task {
        Task::Work { action: Action::Kernel(_), .. } => 0,
        Task::Work { action: Action::Copy(_), .. } => 1,
        Task::Work { action: Action::Fill(_), .. } => 2,
        Task::Work { action: Action::Host(_), .. } => 3,
        Task::Child(_) => 4,
        Task::Work { .. } | Task::Empty => 5,
        Task::WaitEvent(_) => 6,
        Task::RecordEvent(_) => 7,
        Task::Alloc(_) => 10,
        Task::Free(_) => 11,
    }
}

/// Replaces what the nodes of an instantiated graph do by what those of a graph of the same shape do.
fn update(cuda: &mut Session, exec: Handle, graph: Handle) -> Result<std::result::Result<(), (c_int, Handle)>> {
    let new = cuda.graphs.get(&graph).ok_or(Status::INVALID_HANDLE)?.sorted()?;
    let exec = cuda.execs.get_mut(&exec).ok_or(Status::INVALID_HANDLE)?;
    if new.len() != exec.nodes.len() {
        return Ok(Err((TOPOLOGY_CHANGED, Handle::NULL)));
    }
    let places = |nodes: &[(Handle, crate::driver::graph::Node)]| -> Vec<Vec<usize>> {
        let place = |handle: &Handle| nodes.iter().position(|(other, _)| other == handle).unwrap_or(usize::MAX);
        nodes
            .iter()
            .map(|(_, node)| {
                let mut after: Vec<usize> = node.after.iter().map(place).collect();
                after.sort_unstable();
                after
            })
            .collect()
    };
    for ((new, old), (node, old_node)) in places(&new).iter().zip(places(&exec.nodes)).zip(new.iter().zip(&exec.nodes))
    {
        if *new != old {
            return Ok(Err((TOPOLOGY_CHANGED, node.0)));
        }
        if kind(&node.1.task) != kind(&old_node.1.task) {
            return Ok(Err((NODE_TYPE_CHANGED, node.0)));
        }
    }
    for (old, new) in exec.nodes.iter_mut().zip(new) {
        old.1.task = new.1.task;
    }
    Ok(Ok(()))
}

/// Fills an array that a caller offers with room for `count` entries; says how many there are if it offers none.
pub(super) fn fill_array<T: Copy>(values: &[T], array: Out<T>, count: Out<usize>) -> Result {
    if array.is_null() {
        return count.set(values.len());
    }
    let room = count.get()?;
    array.set_all(values.iter().copied().take(room))?;
    count.set(values.len().min(room))
}

fn graph_of(cuda: &Session, handle: Handle) -> Result<&Graph> {
    cuda.graphs.get(&handle).ok_or(Status::INVALID_HANDLE)
}

exports! {
    fn cuGraphCreate(graph: Out<Handle>, flags: c_uint) {
        let mut cuda = context()?;
        if graph.is_null() || flags != 0 {
            return Err(Status::INVALID_VALUE);
        }
        let handle = cuda.handle();
        cuda.graphs.insert(handle, Graph::default());
        graph.set(handle)
    }

    fn cuGraphClone(clone: Out<Handle>, original: Handle) {
        let mut cuda = context()?;
        let source = graph_of(&cuda, original)?.clone();
        if !source.owned().is_empty() {
            return Err(unsupported("cuGraphClone", "a graph that allocates memory"));
        }
        let (handle, copy) = cuda.clone_graph(&source);
        cuda.graphs.insert(handle, copy);
        clone.set(handle)
    }

    fn cuGraphDestroy(graph: Handle) {
        let mut cuda = context()?;
        graph_of(&cuda, graph)?;
        cuda.destroy_graph(graph);
        Ok(())
    }

    fn cuGraphGetNodes(graph: Handle, nodes: Out<Handle>, count: Out<usize>) {
        let cuda = context()?;
        let all: Vec<Handle> = graph_of(&cuda, graph)?.nodes.keys().copied().collect();
        fill_array(&all, nodes, count)
    }

    fn cuGraphGetRootNodes(graph: Handle, nodes: Out<Handle>, count: Out<usize>) {
        let cuda = context()?;
        let nodes_of = graph_of(&cuda, graph)?.nodes.iter();
        let roots: Vec<Handle> = nodes_of.filter(|(_, node)| node.after.is_empty()).map(|(handle, _)| *handle).collect();
        fill_array(&roots, nodes, count)
    }

    fn cuGraphGetEdges(graph: Handle, from: Out<Handle>, to: Out<Handle>, count: Out<usize>) {
        let cuda = context()?;
        let edges = graph_of(&cuda, graph)?.edges();
        if from.is_null() != to.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        if from.is_null() {
            return count.set(edges.len());
        }
        let room = count.get()?;
        from.set_all(edges.iter().map(|edge| edge.0).take(room))?;
        to.set_all(edges.iter().map(|edge| edge.1).take(room))?;
        count.set(edges.len().min(room))
    }

    fn cuGraphInstantiateWithFlags(exec: Out<Handle>, graph: Handle, flags: u64) {
        instantiate(&mut context()?, exec, graph, flags)
    }

    // The signature before CUDA 12, which the name still has; a log buffer stays empty.
    fn cuGraphInstantiate_v2(
        exec: Out<Handle>, graph: Handle, error_node: Out<Handle>, log: Out<u8>, log_size: usize,
    ) {
        error_node.set_if_wanted(Handle::NULL);
        if log_size > 0 {
            log.set_if_wanted(0);
        }
        instantiate(&mut context()?, exec, graph, 0)
    }

    #[ptsz]
    fn cuGraphInstantiateWithParams(exec: Out<Handle>, graph: Handle, params: Out<InstantiateParams>) {
        let mut asked = params.get()?;
        let result = instantiate(&mut context()?, exec, graph, asked.flags & !2);
        asked.error_node = Handle::NULL;
        asked.result = c_int::from(result.is_err());
        params.set(asked)?;
        result
    }

    fn cuGraphExecGetFlags(exec: Handle, flags: Out<u64>) {
        let cuda = context()?;
        flags.set(cuda.execs.get(&exec).ok_or(Status::INVALID_HANDLE)?.flags)
    }

    fn cuGraphExecDestroy(exec: Handle) {
        let mut cuda = context()?;
        cuda.execs.remove(&exec).ok_or(Status::INVALID_HANDLE).map(|_| ())
    }

    #[ptsz]
    fn cuGraphUpload(exec: Handle, stream: Handle) {
        let mut cuda = context()?;
        cuda.stream(stream)?;
        cuda.execs.get(&exec).ok_or(Status::INVALID_HANDLE).map(|_| ())
    }

    #[ptsz]
    fn cuGraphLaunch(exec: Handle, stream: Handle) {
        let mut cuda = context()?;
        let (id, _) = cuda.stream(stream)?;
        if let Some(capture) = cuda.capture_of(id) {
            let nodes = cuda.execs.get(&exec).ok_or(Status::INVALID_HANDLE)?.nodes.clone();
            let child = Graph { nodes: nodes.into_iter().collect(), originals: Default::default() };
            return cuda.note(capture, id, Task::Child(Box::new(child))).map(|_| ());
        }
        cuda.refuse_implicit(id)?;
        cuda.launch_graph(exec, stream, id)
    }

    fn cuGraphExecUpdate_v2(exec: Handle, graph: Handle, info: Out<UpdateResultInfo>) {
        let outcome = update(&mut context()?, exec, graph)?;
        let (result, error_node) = outcome.err().unwrap_or((0, Handle::NULL));
        info.set_if_wanted(UpdateResultInfo { result, error_node, error_from_node: Handle::NULL });
        if result == 0 { Ok(()) } else { Err(Status::GRAPH_EXEC_UPDATE_FAILURE) }
    }

    // The signature before CUDA 12.
    fn cuGraphExecUpdate(exec: Handle, graph: Handle, error_node: Out<Handle>, result: Out<c_int>) {
        let (status, node) = update(&mut context()?, exec, graph)?.err().unwrap_or((0, Handle::NULL));
        error_node.set_if_wanted(node);
        result.set_if_wanted(status);
        if status == 0 { Ok(()) } else { Err(Status::GRAPH_EXEC_UPDATE_FAILURE) }
    }

    fn cuGraphDebugDotPrint(graph: Handle, path: Text, _flags: c_uint) {
        let cuda = context()?;
        let edges = graph_of(&cuda, graph)?.edges();
        let lines: String = edges.iter().map(|(from, to)| format!("    n{:x} -> n{:x};\n", from.0, to.0)).collect();
        std::fs::write(path.path()?, format!("digraph {{\n{lines}}}\n")).map_err(|_| Status::OPERATING_SYSTEM)
    }

    fn cuUserObjectCreate(_object: Out<Handle>, _data: usize, _destroy: usize, _count: c_uint, _flags: c_uint) {
        Err(unsupported("cuUserObjectCreate", "objects that graphs keep alive"))
    }

    fn cuGraphAddNode(
        _node: Out<Handle>, _graph: Handle, _after: In<Handle>, _count: usize, _params: In<u8>,
    ) {
        Err(unsupported("cuGraphAddNode", "the one call for all kinds of nodes; use the call of the kind"))
    }
}

aliases! {
    cuGraphInstantiate = cuGraphInstantiate_v2(
        exec: Out<Handle>, graph: Handle, error_node: Out<Handle>, log: Out<u8>, log_size: usize,
    );
}

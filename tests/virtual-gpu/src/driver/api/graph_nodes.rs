//! The nodes of graphs: adding, asking, changing, in a graph or in one that is instantiated.

use std::ffi::{c_int, c_uint};
use std::sync::Arc;

use crate::driver::abi::{
    Handle, HostNodeParams, In, KernelNodeParams, KernelNodeParamsV2, Memcpy3D, MemsetNodeParams, Out,
};
use crate::driver::exports::{aliases, exports};
use crate::driver::graph::{Node, Task};
use crate::driver::job::{Action, HostCall, Kernel};
use crate::driver::launches::{Dimensions, Params};
use crate::driver::resolve::FillShape;
use crate::driver::session::{Session, context};
use crate::driver::status::{Result, Status};

use super::graphs::{fill_array, kind};

fn add(cuda: &mut Session, out: Out<Handle>, graph: Handle, after: In<Handle>, count: usize, task: Task) -> Result {
    if out.is_null() {
        return Err(Status::INVALID_VALUE);
    }
    let mut after = after.all(count)?;
    after.sort_unstable();
    after.dedup();
    out.set(cuda.add_node(graph, Node { task, after })?)
}

fn kernel_task(cuda: &mut Session, params: &KernelNodeParams, call: &str) -> Result<Task> {
    let dimensions =
        Dimensions { grid: params.grid, block: params.block, shared: params.shared_bytes, cooperative: false };
    let arguments = Params { each: params.params, packed: params.extra };
    let kernel = cuda.kernel(call, params.function, dimensions, arguments)?;
    let what: Arc<str> = format!("kernel {}", kernel.kernel.name()).into();
    Ok(Task::Work { what, action: Action::Kernel(kernel) })
}

fn copy_task(cuda: &Session, params: &Memcpy3D, call: &str) -> Result<Task> {
    let copy = cuda.copy_3d(call, params)?.merged();
    Ok(if copy.bytes() == 0 { Task::Empty } else { Task::Work { what: "copy".into(), action: Action::Copy(copy) } })
}

fn fill_task(cuda: &Session, params: &MemsetNodeParams, call: &str) -> Result<Task> {
    let MemsetNodeParams { dst: address, pitch, value, element_size, width, height } = *params;
    if ![1, 2, 4].contains(&element_size) {
        return Err(Status::INVALID_VALUE);
    }
    let (size, width, height) = (u64::from(element_size), width as u64, height as u64);
    // With one row, the pitch is not used and may be anything.
    let pitch = if height <= 1 { width.saturating_mul(size) } else { pitch as u64 };
    let fill = cuda.fill_of(call, FillShape { address, pitch, value, size, width, height })?;
    Ok(fill.map_or(Task::Empty, |fill| Task::Work { what: "memset".into(), action: Action::Fill(fill) }))
}

fn host_task(params: &HostNodeParams) -> Result<Task> {
    params.function.ok_or(Status::INVALID_VALUE)?;
    let call = HostCall::Function { function: params.function, data: params.data };
    Ok(Task::Work { what: "host function".into(), action: Action::Host(call) })
}

/// Changes a node: of a graph, or of an instantiated one. The kind stays.
fn replace(cuda: &mut Session, exec: Option<Handle>, node: Handle, task: Task) -> Result {
    let target = match exec {
        None => cuda.node(node)?,
        Some(exec) => {
            let exec = cuda.execs.get_mut(&exec).ok_or(Status::INVALID_HANDLE)?;
            let found = exec.nodes.iter_mut().find(|(handle, _)| *handle == node).ok_or(Status::INVALID_VALUE)?;
            &mut found.1
        }
    };
    if kind(&target.task) != kind(&task) {
        return Err(Status::INVALID_VALUE);
    }
    target.task = task;
    Ok(())
}

fn kernel_of(cuda: &mut Session, node: Handle) -> Result<Arc<Kernel>> {
    match &cuda.node(node)?.task {
        Task::Work { action: Action::Kernel(kernel), .. } => Ok(kernel.clone()),
        _ => Err(Status::INVALID_VALUE),
    }
}

/// The parameters of a kernel node. The pointers to its arguments are not kept: they come back null.
fn kernel_params(kernel: &Kernel) -> KernelNodeParams {
    KernelNodeParams {
        function: kernel.function,
        grid: kernel.grid,
        block: kernel.block,
        shared_bytes: kernel.dynamic_shared,
        params: std::ptr::null_mut(),
        extra: std::ptr::null_mut(),
    }
}

exports! {
    fn cuGraphAddEmptyNode(node: Out<Handle>, graph: Handle, after: In<Handle>, count: usize) {
        add(&mut context()?, node, graph, after, count, Task::Empty)
    }

    fn cuGraphAddKernelNode_v2(
        node: Out<Handle>, graph: Handle, after: In<Handle>, count: usize, params: In<KernelNodeParamsV2>,
    ) {
        let mut cuda = context()?;
        let mut params = params.get()?;
        if params.base.function.is_null() {
            params.base.function = params.kernel;
        }
        let task = kernel_task(&mut cuda, &params.base, "cuGraphAddKernelNode")?;
        add(&mut cuda, node, graph, after, count, task)
    }

    fn cuGraphAddKernelNode(
        node: Out<Handle>, graph: Handle, after: In<Handle>, count: usize, params: In<KernelNodeParams>,
    ) {
        let mut cuda = context()?;
        let task = kernel_task(&mut cuda, &params.get()?, "cuGraphAddKernelNode")?;
        add(&mut cuda, node, graph, after, count, task)
    }

    fn cuGraphAddMemcpyNode(
        node: Out<Handle>, graph: Handle, after: In<Handle>, count: usize, params: In<Memcpy3D>, _context: Handle,
    ) {
        let mut cuda = context()?;
        let task = copy_task(&cuda, &params.get()?, "cuGraphAddMemcpyNode")?;
        add(&mut cuda, node, graph, after, count, task)
    }

    fn cuGraphAddMemsetNode(
        node: Out<Handle>, graph: Handle, after: In<Handle>, count: usize, params: In<MemsetNodeParams>, _context: Handle,
    ) {
        let mut cuda = context()?;
        let task = fill_task(&cuda, &params.get()?, "cuGraphAddMemsetNode")?;
        add(&mut cuda, node, graph, after, count, task)
    }

    fn cuGraphAddHostNode(
        node: Out<Handle>, graph: Handle, after: In<Handle>, count: usize, params: In<HostNodeParams>,
    ) {
        add(&mut context()?, node, graph, after, count, host_task(&params.get()?)?)
    }

    fn cuGraphAddChildGraphNode(node: Out<Handle>, graph: Handle, after: In<Handle>, count: usize, child: Handle) {
        let mut cuda = context()?;
        let child = cuda.graphs.get(&child).ok_or(Status::INVALID_HANDLE)?.clone();
        add(&mut cuda, node, graph, after, count, Task::Child(Box::new(child)))
    }

    fn cuGraphAddEventRecordNode(node: Out<Handle>, graph: Handle, after: In<Handle>, count: usize, event: Handle) {
        let mut cuda = context()?;
        cuda.event(event)?;
        add(&mut cuda, node, graph, after, count, Task::RecordEvent(event))
    }

    fn cuGraphAddEventWaitNode(node: Out<Handle>, graph: Handle, after: In<Handle>, count: usize, event: Handle) {
        let mut cuda = context()?;
        cuda.event(event)?;
        add(&mut cuda, node, graph, after, count, Task::WaitEvent(event))
    }

    fn cuGraphAddDependencies(graph: Handle, from: In<Handle>, to: In<Handle>, count: usize) {
        let mut cuda = context()?;
        let target = cuda.graphs.get_mut(&graph).ok_or(Status::INVALID_HANDLE)?;
        let edges: Vec<(Handle, Handle)> = from.all(count)?.into_iter().zip(to.all(count)?).collect();
        let mut changed = target.clone();
        for (from, to) in edges {
            if from == to || !changed.nodes.contains_key(&from) {
                return Err(Status::INVALID_VALUE);
            }
            let node = changed.nodes.get_mut(&to).ok_or(Status::INVALID_VALUE)?;
            if node.after.contains(&from) {
                return Err(Status::INVALID_VALUE); // the edge is there already
            }
            node.after.push(from);
        }
        changed.sorted()?;
        *target = changed;
        Ok(())
    }

    fn cuGraphRemoveDependencies(graph: Handle, from: In<Handle>, to: In<Handle>, count: usize) {
        let mut cuda = context()?;
        let target = cuda.graphs.get_mut(&graph).ok_or(Status::INVALID_HANDLE)?;
        for (from, to) in from.all(count)?.into_iter().zip(to.all(count)?) {
            let node = target.nodes.get_mut(&to).ok_or(Status::INVALID_VALUE)?;
            let place = node.after.iter().position(|other| *other == from).ok_or(Status::INVALID_VALUE)?;
            node.after.remove(place);
        }
        Ok(())
    }

    fn cuGraphDestroyNode(node: Handle) {
        let mut cuda = context()?;
        let graph = cuda.nodes.remove(&node).ok_or(Status::INVALID_HANDLE)?;
        let graph = cuda.graphs.get_mut(&graph).ok_or(Status::INVALID_HANDLE)?;
        graph.nodes.remove(&node);
        for other in graph.nodes.values_mut() {
            other.after.retain(|handle| *handle != node);
        }
        Ok(())
    }

    fn cuGraphNodeGetType(node: Handle, out: Out<c_int>) {
        let found = kind(&context()?.node(node)?.task);
        out.set(found)
    }

    fn cuGraphNodeGetDependencies(node: Handle, nodes: Out<Handle>, count: Out<usize>) {
        let after = context()?.node(node)?.after.clone();
        fill_array(&after, nodes, count)
    }

    fn cuGraphNodeGetDependentNodes(node: Handle, nodes: Out<Handle>, count: Out<usize>) {
        let cuda = context()?;
        let graph = cuda.nodes.get(&node).ok_or(Status::INVALID_HANDLE)?;
        let edges = cuda.graphs.get(graph).ok_or(Status::INVALID_HANDLE)?.edges();
        let dependent: Vec<Handle> = edges.into_iter().filter(|edge| edge.0 == node).map(|edge| edge.1).collect();
        fill_array(&dependent, nodes, count)
    }

    fn cuGraphNodeFindInClone(out: Out<Handle>, original: Handle, clone: Handle) {
        let cuda = context()?;
        let clone = cuda.graphs.get(&clone).ok_or(Status::INVALID_HANDLE)?;
        let found = clone.originals.iter().find(|(_, of)| **of == original).map(|(own, _)| *own);
        out.set(found.ok_or(Status::INVALID_VALUE)?)
    }

    fn cuGraphNodeGetEnabled(exec: Handle, node: Handle, enabled: Out<c_uint>) {
        let cuda = context()?;
        let exec = cuda.execs.get(&exec).ok_or(Status::INVALID_HANDLE)?;
        enabled.set(c_uint::from(!exec.disabled.contains(&node)))
    }

    fn cuGraphNodeSetEnabled(exec: Handle, node: Handle, enabled: c_uint) {
        let mut cuda = context()?;
        let exec = cuda.execs.get_mut(&exec).ok_or(Status::INVALID_HANDLE)?;
        let found = exec.nodes.iter().find(|(handle, _)| *handle == node).ok_or(Status::INVALID_VALUE)?;
        if kind(&found.1.task) > 2 {
            return Err(Status::INVALID_VALUE); // only kernels, copies and fills can be switched off
        }
        if enabled == 0 {
            exec.disabled.insert(node);
        } else {
            exec.disabled.remove(&node);
        }
        Ok(())
    }

    fn cuGraphKernelNodeGetParams_v2(node: Handle, params: Out<KernelNodeParamsV2>) {
        let mut cuda = context()?;
        let kernel = kernel_of(&mut cuda, node)?;
        let context = cuda.functions.get(&kernel.function).map_or(Handle::NULL, |function| function.context);
        params.set(KernelNodeParamsV2 { base: kernel_params(&kernel), kernel: Handle::NULL, context })
    }

    fn cuGraphKernelNodeGetParams(node: Handle, params: Out<KernelNodeParams>) {
        let kernel = kernel_of(&mut context()?, node)?;
        params.set(kernel_params(&kernel))
    }

    fn cuGraphKernelNodeSetParams_v2(node: Handle, params: In<KernelNodeParamsV2>) {
        let mut cuda = context()?;
        let task = kernel_task(&mut cuda, &params.get()?.base, "cuGraphKernelNodeSetParams")?;
        replace(&mut cuda, None, node, task)
    }

    fn cuGraphKernelNodeSetParams(node: Handle, params: In<KernelNodeParams>) {
        let mut cuda = context()?;
        let task = kernel_task(&mut cuda, &params.get()?, "cuGraphKernelNodeSetParams")?;
        replace(&mut cuda, None, node, task)
    }

    fn cuGraphExecKernelNodeSetParams_v2(exec: Handle, node: Handle, params: In<KernelNodeParamsV2>) {
        let mut cuda = context()?;
        let task = kernel_task(&mut cuda, &params.get()?.base, "cuGraphExecKernelNodeSetParams")?;
        replace(&mut cuda, Some(exec), node, task)
    }

    fn cuGraphExecKernelNodeSetParams(exec: Handle, node: Handle, params: In<KernelNodeParams>) {
        let mut cuda = context()?;
        let task = kernel_task(&mut cuda, &params.get()?, "cuGraphExecKernelNodeSetParams")?;
        replace(&mut cuda, Some(exec), node, task)
    }

    fn cuGraphMemcpyNodeSetParams(node: Handle, params: In<Memcpy3D>) {
        let mut cuda = context()?;
        let task = copy_task(&cuda, &params.get()?, "cuGraphMemcpyNodeSetParams")?;
        replace(&mut cuda, None, node, task)
    }

    fn cuGraphExecMemcpyNodeSetParams(exec: Handle, node: Handle, params: In<Memcpy3D>, _context: Handle) {
        let mut cuda = context()?;
        let task = copy_task(&cuda, &params.get()?, "cuGraphExecMemcpyNodeSetParams")?;
        replace(&mut cuda, Some(exec), node, task)
    }

    fn cuGraphMemsetNodeGetParams(node: Handle, params: Out<MemsetNodeParams>) {
        let mut cuda = context()?;
        match &cuda.node(node)?.task {
            Task::Work { action: Action::Fill(fill), .. } => params.set(MemsetNodeParams {
                dst: fill.address,
                pitch: fill.pitch as usize,
                value: u32::from_le_bytes(fill.value),
                element_size: fill.size as c_uint,
                width: fill.width as usize,
                height: fill.height as usize,
            }),
            _ => Err(Status::INVALID_VALUE),
        }
    }

    fn cuGraphMemsetNodeSetParams(node: Handle, params: In<MemsetNodeParams>) {
        let mut cuda = context()?;
        let task = fill_task(&cuda, &params.get()?, "cuGraphMemsetNodeSetParams")?;
        replace(&mut cuda, None, node, task)
    }

    fn cuGraphExecMemsetNodeSetParams(exec: Handle, node: Handle, params: In<MemsetNodeParams>, _context: Handle) {
        let mut cuda = context()?;
        let task = fill_task(&cuda, &params.get()?, "cuGraphExecMemsetNodeSetParams")?;
        replace(&mut cuda, Some(exec), node, task)
    }

    fn cuGraphHostNodeGetParams(node: Handle, params: Out<HostNodeParams>) {
        let mut cuda = context()?;
        match &cuda.node(node)?.task {
            Task::Work { action: Action::Host(HostCall::Function { function, data }), .. } => {
                params.set(HostNodeParams { function: *function, data: *data })
            }
            _ => Err(Status::INVALID_VALUE),
        }
    }

    fn cuGraphHostNodeSetParams(node: Handle, params: In<HostNodeParams>) {
        replace(&mut context()?, None, node, host_task(&params.get()?)?)
    }

    fn cuGraphExecHostNodeSetParams(exec: Handle, node: Handle, params: In<HostNodeParams>) {
        replace(&mut context()?, Some(exec), node, host_task(&params.get()?)?)
    }

    fn cuGraphExecChildGraphNodeSetParams(exec: Handle, node: Handle, child: Handle) {
        let mut cuda = context()?;
        let child = cuda.graphs.get(&child).ok_or(Status::INVALID_HANDLE)?.clone();
        replace(&mut cuda, Some(exec), node, Task::Child(Box::new(child)))
    }

    fn cuGraphExecEventRecordNodeSetEvent(exec: Handle, node: Handle, event: Handle) {
        let mut cuda = context()?;
        cuda.event(event)?;
        replace(&mut cuda, Some(exec), node, Task::RecordEvent(event))
    }

    fn cuGraphExecEventWaitNodeSetEvent(exec: Handle, node: Handle, event: Handle) {
        let mut cuda = context()?;
        cuda.event(event)?;
        replace(&mut cuda, Some(exec), node, Task::WaitEvent(event))
    }

    fn cuGraphEventRecordNodeGetEvent(node: Handle, event: Out<Handle>) {
        match context()?.node(node)?.task {
            Task::RecordEvent(found) => event.set(found),
            _ => Err(Status::INVALID_VALUE),
        }
    }

    fn cuGraphEventWaitNodeGetEvent(node: Handle, event: Out<Handle>) {
        match context()?.node(node)?.task {
            Task::WaitEvent(found) => event.set(found),
            _ => Err(Status::INVALID_VALUE),
        }
    }
}

aliases! {}

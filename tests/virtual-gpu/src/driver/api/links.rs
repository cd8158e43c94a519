//! Linking: PTX texts become one, which is what this driver loads. What the linker of a GPU would make of them, machine
//! code, is for GPUs.

use std::ffi::{CString, c_int, c_uint, c_void};

use crate::driver::abi::{Handle, In, Out, Text};
use crate::driver::exports::{aliases, exports, invalid, unsupported};
use crate::driver::session::context;
use crate::driver::state::Link;
use crate::driver::status::{Result, Status};

/// `CU_JIT_INPUT_PTX`.
const PTX: c_uint = 1;

fn add(call: &str, state: Handle, kind: c_uint, image: Vec<u8>) -> Result {
    let mut cuda = context()?;
    let link = cuda.links.get_mut(&state).ok_or(Status::INVALID_HANDLE)?;
    if kind != PTX {
        return Err(unsupported(call, "linking anything but PTX text"));
    }
    let end = image.iter().position(|byte| *byte == 0).unwrap_or(image.len());
    let text = std::str::from_utf8(&image[..end]).map_err(|_| invalid(call, "the image is not text"))?;
    link.texts.push(text.to_owned());
    Ok(())
}

/// The texts as one: the head of the latest version, then all that is declared. Later texts leave their lines of source
/// behind, whose files have numbers of their own.
fn join(texts: &[String]) -> String {
    let version = |text: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(".version"));
        line.and_then(|line| line.trim().split_once('.')).and_then(|(major, minor)| {
            Some((major.parse::<u32>().ok()?, minor.split_whitespace().next()?.parse::<u32>().ok()?))
        })
    };
    let is_head = |line: &str| [".version", ".target", ".address_size"].iter().any(|word| line.starts_with(word));
    let latest = texts.iter().max_by_key(|text| version(text));
    let mut out: String = latest
        .into_iter()
        .flat_map(|text| text.lines())
        .filter(|line| is_head(line.trim()))
        .fold(String::new(), |head, line| head + line + "\n");
    for (index, text) in texts.iter().enumerate() {
        let drops = |line: &str| is_head(line) || index > 0 && (line.starts_with(".loc") || line.starts_with(".file"));
        for line in text.lines().filter(|line| !drops(line.trim())) {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

exports! {
    fn cuLinkCreate_v2(_count: c_uint, _options: In<c_int>, _values: In<usize>, state: Out<Handle>) {
        let mut cuda = context()?;
        let (handle, context) = (cuda.handle(), cuda.context);
        cuda.links.insert(handle, Link { context, texts: Vec::new(), image: CString::default() });
        state.set(handle)
    }

    fn cuLinkAddData_v2(
        state: Handle, kind: c_uint, data: In<u8>, size: usize, _name: Text, _count: c_uint, _options: In<c_int>,
        _values: In<usize>,
    ) {
        add("cuLinkAddData", state, kind, data.all(size)?)
    }

    fn cuLinkAddFile_v2(
        state: Handle, kind: c_uint, path: Text, _count: c_uint, _options: In<c_int>, _values: In<usize>,
    ) {
        let path = path.path()?;
        let bytes = std::fs::read(&path).map_err(|error| {
            crate::report::warn(&format!("cuLinkAddFile: {}: {error}", path.display()));
            Status::FILE_NOT_FOUND
        })?;
        add("cuLinkAddFile", state, kind, bytes)
    }

    fn cuLinkComplete(state: Handle, image: Out<*const c_void>, size: Out<usize>) {
        let mut cuda = context()?;
        let link = cuda.links.get_mut(&state).ok_or(Status::INVALID_HANDLE)?;
        if link.texts.is_empty() {
            return Err(invalid("cuLinkComplete", "there is nothing to link"));
        }
        link.image = CString::new(join(&link.texts)).map_err(|_| Status::INVALID_IMAGE)?;
        // The image stays in place until the link is destroyed or completed again.
        size.set_if_wanted(link.image.as_bytes_with_nul().len());
        image.set(link.image.as_ptr().cast())
    }

    fn cuLinkDestroy(state: Handle) {
        context()?.links.remove(&state).map(|_| ()).ok_or(Status::INVALID_HANDLE)
    }
}

aliases! {
    cuLinkCreate = cuLinkCreate_v2(count: c_uint, options: In<c_int>, values: In<usize>, state: Out<Handle>);
    cuLinkAddData = cuLinkAddData_v2(
        state: Handle, kind: c_uint, data: In<u8>, size: usize, name: Text, count: c_uint, options: In<c_int>,
        values: In<usize>,
    );
    cuLinkAddFile = cuLinkAddFile_v2(
        state: Handle, kind: c_uint, path: Text, count: c_uint, options: In<c_int>, values: In<usize>,
    );
}

#[cfg(test)]
mod tests {
    use super::join;

    #[test]
    fn the_latest_head_and_the_lines_of_the_first() {
        let first = ".version 7.1\n.target sm_70\n.address_size 64\n.file 1 \"a.cu\"\n.visible .entry a()\n{\n.loc 1 2 3\nret;\n}\n";
        let second = ".version 8.2\n.target sm_80\n.address_size 64\n.file 1 \"b.cu\"\n.visible .entry b()\n{\n\t.loc 1 2 3\nret;\n}\n";
        let joined = join(&[first.to_owned(), second.to_owned()]);
        assert!(joined.starts_with(".version 8.2\n.target sm_80\n.address_size 64\n.file 1 \"a.cu\"\n"), "{joined}");
        assert_eq!((joined.matches(".loc").count(), joined.matches(".file").count()), (1, 1));
        assert_eq!(crate::lower::load(&joined).unwrap().functions.len(), 2);
    }
}

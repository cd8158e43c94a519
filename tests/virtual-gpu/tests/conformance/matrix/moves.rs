//! Matrices into registers, and turned over there.

use crate::harness::Program;

#[test]
pub fn ldmatrix() {
    for count in [1usize, 2, 4] {
        for trans in ["", ".trans"] {
            for space in ["", ".shared", ".shared::cta"] {
                let regs = ["%r20", "%r21", "%r22", "%r23"][..count].join(", ");
                let list = format!("{{{regs}}}");
                let address = if space.is_empty() { "cvta.shared.u64 %rd3, %rd3;" } else { "" };
                // 32 rows of 8 halves, in an order of rows that is not that of memory.
                let mut body = format!(
                    ".shared .align 16 .b8 area[512]; mov.u64 %rd4, area; mad.wide.u32 %rd3, %r1, 16, %rd4;\n\
                     mad.wide.u32 %rd2, %r1, 16, %rd1; ld.global.v4.u32 {{%r10, %r11, %r12, %r13}}, [%rd2];\n\
                     st.shared.v4.u32 [%rd3], {{%r10, %r11, %r12, %r13}}; bar.sync 0;\n\
                     xor.b32 %r3, %r1, 3; mad.wide.u32 %rd3, %r3, 16, %rd4; {address}\n\
                     ldmatrix.sync.aligned.m8n8.x{count}{trans}{space}.b16 {list}, [%rd3];\n"
                );
                for i in 0..count {
                    body += &format!("st.global.u32 [%rd2+{}], %r{};\n", 4 * i, 20 + i);
                }
                let halves: Vec<u16> = (0..256).map(|i| i * 257 + 1).collect();
                let bytes: Vec<u8> = halves.iter().flat_map(|h| h.to_le_bytes()).collect();
                let found = crate::harness::words(&Program { body: &body, ..Program::default() }.run(&bytes));
                for lane in 0..32 {
                    for i in 0..count {
                        let element = |j: usize| {
                            let (row, col) = (lane / 4, 2 * (lane % 4) + j);
                            let (row, col) = if trans.is_empty() { (row, col) } else { (col, row) };
                            // Row `row` of matrix `i` is at the address of lane 8 i + row.
                            u32::from(halves[((8 * i + row) ^ 3) * 8 + col])
                        };
                        assert_eq!(found[4 * lane + i], element(0) | element(1) << 16, "x{count}{trans} lane {lane}");
                    }
                }
            }
        }
    }
}

#[test]
pub fn movmatrix() {
    let body = "mad.wide.u32 %rd2, %r1, 4, %rd1; ld.global.u32 %r3, [%rd2];\n\
         movmatrix.sync.aligned.m8n8.trans.b16 %r4, %r3; st.global.u32 [%rd2], %r4;";
    let halves: Vec<u16> = (0..64).map(|i| i * 1021 + 3).collect();
    let bytes: Vec<u8> = halves.iter().flat_map(|h| h.to_le_bytes()).collect();
    let found = Program { body, ..Program::default() }.run(&bytes);
    for (i, h) in found.chunks(2).enumerate() {
        assert_eq!(u16::from_le_bytes([h[0], h[1]]), halves[i % 8 * 8 + i / 8]);
    }
}

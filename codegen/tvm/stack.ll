; Stacks that hold vectors.  What they are for: stack.py.

define void @plait_align_stack() {
  %line = alloca <8 x i64>, align 64
  store volatile <8 x i64> zeroinitializer, ptr %line, align 64
  ret void
}

; Steps whose parts threads claim. What they are for: phases.py.

declare i32 @sched_yield()
declare void @llvm.x86.sse2.pause()

; 1 if the caller is the first to come for a step of the part that `word` belongs to, else 0.
define i32 @plait_claim(ptr %word, i32 %step) {
  %done = load atomic i32, ptr %word monotonic, align 4
  %late = icmp sgt i32 %done, %step
  br i1 %late, label %no, label %try
try:
  %next = add i32 %step, 1
  %swap = cmpxchg ptr %word, i32 %done, i32 %next seq_cst monotonic
  %first = extractvalue { i32, i1 } %swap, 1
  %claimed = zext i1 %first to i32
  ret i32 %claimed
no:
  ret i32 0
}

; A part is done, which counts so much in `word`.
define i32 @plait_arrive(ptr %word, i32 %count) {
  atomicrmw add ptr %word, i32 %count seq_cst
  ret i32 0
}

; 1 before `word` has counted so much, then 0.
define i32 @plait_before(ptr %word, i32 %count) {
  %done = load atomic i32, ptr %word acquire, align 4
  %less = icmp slt i32 %done, %count
  %before = zext i1 %less to i32
  ret i32 %before
}

; Wait until `word` has counted so much.
define i32 @plait_await(ptr %word, i32 %count) {
entry:
  br label %look
look:
  %looks = phi i32 [ 0, %entry ], [ %more, %wait ]
  %done = load atomic i32, ptr %word acquire, align 4
  %left = icmp slt i32 %done, %count
  br i1 %left, label %wait, label %end
wait:
  %more = call i32 @plait_look_again(i32 %looks)
  br label %look
end:
  ret i32 0
}

; Let a moment pass for a thread that waits for others at work; after many, offer them the CPU.
define i32 @plait_look_again(i32 %looks) {
  %patient = icmp slt i32 %looks, 2000  ; some 30 us
  br i1 %patient, label %pause, label %yield
pause:
  call void @llvm.x86.sse2.pause()
  %more = add i32 %looks, 1
  ret i32 %more
yield:
  call i32 @sched_yield()
  ret i32 %looks
}

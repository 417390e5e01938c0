; Stores past the caches. What they are for: past.py.

define void @plait_past_16(ptr %place, <16 x float> %value) {
  %number = ptrtoint ptr %place to i64
  %within = and i64 %number, 63
  %whole = icmp eq i64 %within, 0
  br i1 %whole, label %past, label %into
past:
  store <16 x float> %value, ptr %place, align 64, !nontemporal !0
  ret void
into:
  store <16 x float> %value, ptr %place, align 4
  ret void
}

!0 = !{ i32 1 }

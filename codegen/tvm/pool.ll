; The threads that help with parallel loops: one pool for a process. What it is for: pool.py.
;
; A launcher puts its loop up in the globals below and opens it. A worker goes inside before it looks
; whether the loop is open, and the launcher closes it before it looks whether anybody is inside:
; one of them sees the other, so nobody is at work on a loop that its launcher has left.
;
; TVM inlines all functions of a text it imports, and defines none: those that are called by their
; addresses, plait_pool_launch and plait_pool_worker, are functions of TVM's.

%environment = type { ptr, i32 }  ; of a task: what TVM's barriers would use, and how many tasks

@key = internal global i32 0, align 64         ; of the number of threads that each thread wants
@generation = internal global i32 0, align 64  ; counts loops; workers sleep on it
@sleepers = internal global i32 0, align 64    ; workers that sleep or are about to
@taken = internal global i32 0, align 64       ; 1 while a launcher has the pool
@open = internal global i32 0, align 64        ; 1 while workers may begin with its loop
@inside = internal global i32 0, align 64      ; workers that may be at work on it
@next = internal global i32 0, align 64        ; the first task that nobody has begun
@environment = internal global %environment zeroinitializer, align 64
@function = internal global ptr null
@data = internal global ptr null
@result = internal global i32 0                ; 0, or what tasks that failed returned
@cpu = internal global i32 -1, align 64        ; where the launcher was when it put its loop up
@workers = internal global i32 0, align 64
@threads = internal global [128 x i64] zeroinitializer, align 64
@growing = internal global i32 0, align 64     ; 1 while somebody starts workers or ends them
@stopping = internal global i32 0, align 64
@name = internal constant [6 x i8] c"plait\00"

declare i32 @pthread_key_create(ptr, ptr)
declare ptr @pthread_getspecific(i32)
declare i32 @pthread_setspecific(i32, ptr)
declare i32 @pthread_create(ptr, ptr, ptr, ptr)
declare i32 @pthread_join(i64, ptr)
declare i32 @pthread_sigmask(i32, ptr, ptr)
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
declare i64 @pthread_self()
declare i32 @pthread_setname_np(i64, ptr)
declare i32 @sched_getcpu()
declare i32 @sched_yield()
declare i32 @sched_getaffinity(i32, i64, ptr)
declare i32 @sched_setaffinity(i32, i64, ptr)
declare i64 @llvm.readcyclecounter()
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)
declare i64 @syscall(i64, ...)
declare void @llvm.x86.sse2.pause()
declare i32 @plait_look_again(i32)  ; of phases.ll
declare i32 @plait_pool_launch(ptr, ptr, i32)
declare ptr @plait_pool_worker(ptr)

; Do a loop's tasks; what TVM's parallel loops call. The last argument is TVM's wish, always 0.
define i32 @launch(ptr %function, ptr %data, i32 %wish) {
  %single = alloca %environment
  %key = load i32, ptr @key
  %wanted = call ptr @pthread_getspecific(i32 %key)
  %wide = ptrtoint ptr %wanted to i64
  %count = trunc i64 %wide to i32
  %several = icmp sgt i32 %count, 1
  br i1 %several, label %try, label %alone
try:
  %swap = cmpxchg ptr @taken, i32 0, i32 1 seq_cst monotonic
  %free = extractvalue { i32, i1 } %swap, 1
  br i1 %free, label %share, label %alone
share:
  store ptr %function, ptr @function
  store ptr %data, ptr @data
  store i32 %count, ptr getelementptr (%environment, ptr @environment, i32 0, i32 1)
  store i32 0, ptr @result
  store i32 1, ptr @next
  %cpu = call i32 @sched_getcpu()
  store atomic i32 %cpu, ptr @cpu monotonic, align 4
  store atomic i32 1, ptr @open seq_cst, align 4
  %old = atomicrmw add ptr @generation, i32 1 seq_cst
  %asleep = load atomic i32, ptr @sleepers seq_cst, align 4
  %any = icmp sgt i32 %asleep, 0
  br i1 %any, label %wake, label %work
wake:
  %others = sub i64 %wide, 1
  ; FUTEX_WAKE
  call i64 (i64, ...) @syscall(i64 202, ptr @generation, i64 129, i64 %others)
  br label %work
work:
  call void @tasks(i32 0, i32 %count)
  store atomic i32 0, ptr @open seq_cst, align 4
  br label %leave
leave:
  %looks = phi i32 [ 0, %work ], [ %more, %wait ]
  %inside = load atomic i32, ptr @inside seq_cst, align 4
  %gone = icmp eq i32 %inside, 0
  br i1 %gone, label %done, label %wait
wait:
  %more = call i32 @plait_look_again(i32 %looks)
  br label %leave
done:
  %result = load atomic i32, ptr @result monotonic, align 4
  store atomic i32 0, ptr @taken seq_cst, align 4
  ret i32 %result
alone:
  store %environment { ptr null, i32 1 }, ptr %single
  %own = call i32 %function(i32 0, ptr %single, ptr %data)
  ret i32 %own
}

; Do the task `first`, if there is such a task, then those that nobody has begun.
define void @tasks(i32 %first, i32 %count) {
entry:
  br label %look
look:
  %task = phi i32 [ %first, %entry ], [ %next, %begin ]
  %left = icmp slt i32 %task, %count
  br i1 %left, label %begin, label %end
begin:
  %function = load ptr, ptr @function
  %data = load ptr, ptr @data
  %status = call i32 %function(i32 %task, ptr @environment, ptr %data)
  %all = atomicrmw or ptr @result, i32 %status monotonic
  %next = atomicrmw add ptr @next, i32 1 seq_cst
  br label %look
end:
  ret void
}

; A worker, from its start to the end of the pool.
define i32 @work() {
entry:
  %last_move = alloca i64
  store i64 0, ptr %last_move
  %self = call i64 @pthread_self()
  call i32 @pthread_setname_np(i64 %self, ptr @name)
  %first = load atomic i32, ptr @generation seq_cst, align 4
  br label %idle
idle:
  %seen = phi i32 [ %first, %entry ], [ %now, %work ], [ %now, %leave ]
  br label %look
look:
  %looks = phi i32 [ 0, %idle ], [ %more, %again ], [ 0, %wait ]
  %known = phi i32 [ %seen, %idle ], [ %known, %again ], [ %slept, %wait ]
  %now = load atomic i32, ptr @generation seq_cst, align 4
  %none = icmp eq i32 %now, %known
  br i1 %none, label %rest, label %called
rest:
  %last = icmp sge i32 %looks, 6000  ; some 150 us, longer than between two calls
  br i1 %last, label %sleep, label %turn
turn:
  %sixteenth = and i32 %looks, 15
  %offer = icmp eq i32 %sixteenth, 15
  br i1 %offer, label %yield, label %pause
yield:
  call i32 @sched_yield()
  %shared = call i1 @beside_launcher()
  br i1 %shared, label %sleep, label %again
pause:
  call void @llvm.x86.sse2.pause()
  br label %again
again:
  %more = add i32 %looks, 1
  br label %look
sleep:
  %slept = phi i32 [ %known, %rest ], [ %known, %yield ], [ %now, %move ]
  %stopping = load atomic i32, ptr @stopping seq_cst, align 4
  %stop = icmp ne i32 %stopping, 0
  br i1 %stop, label %end, label %wait
wait:
  atomicrmw add ptr @sleepers, i32 1 seq_cst
  ; FUTEX_WAIT
  call i64 (i64, ...) @syscall(i64 202, ptr @generation, i64 128, i32 %slept, ptr null)
  atomicrmw sub ptr @sleepers, i32 1 seq_cst
  br label %look
called:
  %ends = load atomic i32, ptr @stopping seq_cst, align 4
  %leave_now = icmp ne i32 %ends, 0
  br i1 %leave_now, label %end, label %place
place:
  %beside = call i1 @beside_launcher()
  br i1 %beside, label %move, label %enter
move:
  %moved = call i1 @leave_launcher(ptr %last_move)
  br i1 %moved, label %enter, label %sleep
enter:
  atomicrmw add ptr @inside, i32 1 seq_cst
  %open = load atomic i32, ptr @open seq_cst, align 4
  %begin = icmp ne i32 %open, 0
  br i1 %begin, label %work, label %leave
work:
  %count = load i32, ptr getelementptr (%environment, ptr @environment, i32 0, i32 1)
  %next = atomicrmw add ptr @next, i32 1 seq_cst
  call void @tasks(i32 %next, i32 %count)
  atomicrmw sub ptr @inside, i32 1 seq_cst
  br label %idle
leave:
  atomicrmw sub ptr @inside, i32 1 seq_cst
  br label %idle
end:
  ret i32 0
}

; Whether this worker runs on the launcher's CPU, where it only takes time from it.
define i1 @beside_launcher() {
  %here = call i32 @sched_getcpu()
  %there = load atomic i32, ptr @cpu monotonic, align 4
  %same = icmp eq i32 %here, %there
  %known = icmp sge i32 %here, 0
  %beside = and i1 %same, %known
  ret i1 %beside
}

; Go to another CPU than the launcher's, unless that failed a moment ago: do not fight a busy
; scheduler. The thread keeps its CPUs; it is only away from one of them for a moment.
define i1 @leave_launcher(ptr %last_move) {
  %mine = alloca [16 x i64]
  %others = alloca [16 x i64]
  %now = call i64 @llvm.readcyclecounter()
  %last = load i64, ptr %last_move
  %passed = sub i64 %now, %last
  %soon = icmp ult i64 %passed, 30000000  ; some 10 ms
  br i1 %soon, label %stay, label %look
look:
  store i64 %now, ptr %last_move
  %unknown = call i32 @sched_getaffinity(i32 0, i64 128, ptr %mine)
  %known = icmp eq i32 %unknown, 0
  %cpu = load atomic i32, ptr @cpu monotonic, align 4
  %within = icmp ult i32 %cpu, 1024
  %can = and i1 %known, %within
  br i1 %can, label %go, label %stay
go:
  call void @llvm.memcpy.p0.p0.i64(ptr %others, ptr %mine, i64 128, i1 false)
  %wide = zext i32 %cpu to i64
  %number = lshr i64 %wide, 6
  %place = getelementptr [16 x i64], ptr %others, i64 0, i64 %number
  %word = load i64, ptr %place
  %bit = and i64 %wide, 63
  %one = shl i64 1, %bit
  %but = xor i64 %one, -1
  %rest = and i64 %word, %but
  store i64 %rest, ptr %place
  %failed = call i32 @sched_setaffinity(i32 0, i64 128, ptr %others)
  %alone = icmp ne i32 %failed, 0
  br i1 %alone, label %stay, label %return
return:
  call i32 @sched_setaffinity(i32 0, i64 128, ptr %mine)
  ret i1 true
stay:
  ret i1 false
}

; Make the pool, once; returns where `launch` is, or 0 if there is no key for one more pool.
define i64 @made() {
  %failed = call i32 @pthread_key_create(ptr @key, ptr null)
  %made = icmp eq i32 %failed, 0
  %launch = select i1 %made, i64 ptrtoint (ptr @plait_pool_launch to i64), i64 0
  ret i64 %launch
}

; Loops that the calling thread launches are of so many tasks; the pool grows to as many threads.
define i64 @asked(i32 %count) {
  %key = load i32, ptr @key
  %wide = sext i32 %count to i64
  %value = inttoptr i64 %wide to ptr
  call i32 @pthread_setspecific(i32 %key, ptr %value)
  %others = sub i32 %count, 1
  %few = call i1 @too_few(i32 %others)
  br i1 %few, label %grow, label %end
grow:
  call void @grow_alone()
  br label %look
look:
  %more = call i1 @too_few(i32 %others)
  br i1 %more, label %start, label %done
start:
  %started = call i1 @started()
  br i1 %started, label %look, label %done
done:
  store atomic i32 0, ptr @growing seq_cst, align 4
  br label %end
end:
  ret i64 0
}

; Whether there are to be more workers.
define i1 @too_few(i32 %wanted) {
  %workers = load atomic i32, ptr @workers seq_cst, align 4
  %stopping = load atomic i32, ptr @stopping seq_cst, align 4
  %few = icmp slt i32 %workers, %wanted
  %going = icmp eq i32 %stopping, 0
  %room = icmp slt i32 %workers, 128
  %may = and i1 %going, %room
  %more = and i1 %few, %may
  ret i1 %more
}

; Wait until nobody else starts workers or ends them.
define void @grow_alone() {
entry:
  br label %try
try:
  %looks = phi i32 [ 0, %entry ], [ %more, %wait ]
  %swap = cmpxchg ptr @growing, i32 0, i32 1 seq_cst monotonic
  %alone = extractvalue { i32, i1 } %swap, 1
  br i1 %alone, label %end, label %wait
wait:
  %more = call i32 @plait_look_again(i32 %looks)
  br label %try
end:
  ret void
}

; Start one more worker, if the system lets us.
define i1 @started() {
  %blocked = alloca [16 x i64]
  %before = alloca [16 x i64]
  ; Signals are for the threads of the program, but for those that an instruction raises: SIGILL,
  ; SIGTRAP, SIGBUS, SIGFPE, SIGSEGV and SIGSYS.
  call void @llvm.memset.p0.i64(ptr %blocked, i8 -1, i64 128, i1 false)
  store i64 -1073743065, ptr %blocked
  call i32 @pthread_sigmask(i32 0, ptr %blocked, ptr %before)  ; SIG_BLOCK
  %workers = load atomic i32, ptr @workers seq_cst, align 4
  %at = getelementptr [128 x i64], ptr @threads, i32 0, i32 %workers
  %failed = call i32 @pthread_create(ptr %at, ptr null, ptr @plait_pool_worker, ptr null)
  call i32 @pthread_sigmask(i32 2, ptr %before, ptr null)  ; SIG_SETMASK
  %started = icmp eq i32 %failed, 0
  %one = zext i1 %started to i32
  %all = add i32 %workers, %one
  store atomic i32 %all, ptr @workers seq_cst, align 4
  ret i1 %started
}

; In a new process, which has the thread that made it and no other.
define i64 @left() {
  store i32 0, ptr @sleepers
  store i32 0, ptr @taken
  store i32 0, ptr @open
  store i32 0, ptr @inside
  store i32 0, ptr @workers
  store i32 0, ptr @growing
  ret i64 0
}

; End the workers, and wait until they have.
define i64 @ended() {
entry:
  store atomic i32 1, ptr @stopping seq_cst, align 4
  atomicrmw add ptr @generation, i32 1 seq_cst
  ; FUTEX_WAKE
  call i64 (i64, ...) @syscall(i64 202, ptr @generation, i64 129, i64 128)
  call void @grow_alone()  ; whoever comes after us sees that the pool ends
  br label %look
look:
  %workers = load atomic i32, ptr @workers seq_cst, align 4
  %some = icmp sgt i32 %workers, 0
  br i1 %some, label %join, label %end
join:
  %left = sub i32 %workers, 1
  %at = getelementptr [128 x i64], ptr @threads, i32 0, i32 %left
  %thread = load i64, ptr %at
  call i32 @pthread_join(i64 %thread, ptr null)
  store atomic i32 %left, ptr @workers seq_cst, align 4
  br label %look
end:
  store atomic i32 0, ptr @growing seq_cst, align 4
  ret i64 0
}

#include "block.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <exception>
#include <thread>

#include "cuda_runtime.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

thread_local emulation::Index threadIdx;
thread_local emulation::Index blockIdx;
thread_local emulation::Index blockDim;
thread_local emulation::Index gridDim;

namespace emulation {

namespace {

constexpr std::size_t kStack = 64 * 1024;
constexpr auto kPatience = std::chrono::seconds(60);

thread_local Block* current_block = nullptr;
// Lies among the shared memory of this library, at the same distance from all of it in every thread of the system.
thread_local char anchor = 0;

// Stacks are used again: a launch has thousands of threads.
class Stacks {
  public:
    void* take() {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (free_.empty()) {
            void* fresh = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (fresh == MAP_FAILED) throw std::bad_alloc();
            return fresh;
        }
        void* stack = free_.back();
        free_.pop_back();
        return stack;
    }
    void give(void* stack) {
#if defined(__SANITIZE_ADDRESS__)
        __asan_unpoison_memory_region(stack, kStack);  // a thread that failed left frames on it
#endif
        const std::lock_guard<std::mutex> lock(mutex_);
        free_.push_back(stack);
    }

  private:
    std::mutex mutex_;
    std::vector<void*> free_;
};

Stacks& stacks() {
    static auto& all = *new Stacks;
    return all;
}

// The sanitizer has to know on which stack the program is.
void before_switch([[maybe_unused]] void** fake_stack, [[maybe_unused]] const void* stack,
                   [[maybe_unused]] std::size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(fake_stack, stack, bytes);
#endif
}

void after_switch([[maybe_unused]] void* fake_stack, [[maybe_unused]] const void** old_stack,
                  [[maybe_unused]] std::size_t* old_bytes) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack, old_stack, old_bytes);
#endif
}

thread_local const void* system_stack = nullptr;
thread_local std::size_t system_stack_bytes = 0;

}  // namespace

// A coroutine that runs one thread of a kernel after the other.
struct Thread {
    Index index;
    void* stack = stacks().take();
    std::jmp_buf state;
    bool has_stack_frame = false;
    bool has_ended = false;
    void* fake_stack = nullptr;
    std::exception_ptr error;

    Thread() = default;
    Thread(const Thread&) = delete;
    ~Thread() { stacks().give(stack); }

    [[noreturn]] static void start() {
        Thread& self = *current_block->running_;
        after_switch(nullptr, &system_stack, &system_stack_bytes);
        while (true) {
            Block& block = *current_block;
            try {
                block.launch_.kernel();
            } catch (...) {
                self.error = std::current_exception();
            }
            self.has_ended = true;
            block.yield();
        }
    }
};

namespace {

// Those of this thread of the system that have nothing to do.
thread_local std::vector<std::unique_ptr<Thread>> idle;

std::unique_ptr<Thread> take_idle() {
    if (idle.empty()) return std::make_unique<Thread>();
    std::unique_ptr<Thread> thread = std::move(idle.back());
    idle.pop_back();
    return thread;
}

}  // namespace

Block::Block(const Launch& launch, Index index, Cluster& cluster, unsigned rank)
    : launch_(launch),
      cluster_(cluster),
      rank_(rank),
      dynamic_(static_cast<unsigned char*>(std::aligned_alloc(16, launch.dynamic_bytes + 16)), std::free),
      warps_((launch.block.x + 31) / 32),
      random_(launch.seed + index.x * 0x9e3779b97f4a7c15u),
      alive_(launch.block.x) {
    std::memset(dynamic_.get(), 0xff, launch.dynamic_bytes + 16);  // NaN in every type
    blockIdx = index;
    blockDim = launch.block;
    gridDim = launch.grid;
    for (unsigned i = 0; i < launch.block.x; ++i) {
        threads_.push_back(take_idle());
        threads_.back()->index = {i, 0, 0};
        threads_.back()->has_ended = false;
    }
    current_block = this;
}

Block::~Block() {
    current_block = nullptr;
    for (auto& thread : threads_) {
        if (thread->has_ended && !thread->error) idle.push_back(std::move(thread));
    }
}

Block& Block::current() { return *current_block; }

void Block::resume(Thread& thread) {
    running_ = &thread;
    threadIdx = thread.index;
    before_switch(&fake_stack_, thread.stack, kStack);
    if (_setjmp(scheduler_) == 0) {
        if (thread.has_stack_frame) _longjmp(thread.state, 1);
        thread.has_stack_frame = true;
        ucontext_t context;
        getcontext(&context);
        context.uc_stack.ss_sp = thread.stack;
        context.uc_stack.ss_size = kStack;
        context.uc_link = nullptr;
        makecontext(&context, Thread::start, 0);
        setcontext(&context);
    }
    after_switch(fake_stack_, nullptr, nullptr);
}

void Block::yield() {
    Thread& self = *running_;
    before_switch(&self.fake_stack, system_stack, system_stack_bytes);
    if (_setjmp(self.state) == 0) _longjmp(scheduler_, 1);
    after_switch(self.fake_stack, &system_stack, &system_stack_bytes);
}

void Block::run() {
    std::vector<Thread*> order;
    for (const auto& thread : threads_) order.push_back(thread.get());
    // Warps that stand still until the others can go no further: what they have yet to read must still be there.
    std::vector<bool> is_slow(warps_.size(), false);
    bool has_slow = false;
    while (!order.empty()) {
        if (launch_.seed != 0) std::shuffle(order.begin(), order.end(), random_);
        has_progressed_ = false;
        complete(false);
        for (Thread* thread : order) {
            if (is_slow[thread->index.x / 32]) continue;
            resume(*thread);
            if (thread->error) std::rethrow_exception(thread->error);
            if (!thread->has_ended) continue;
            has_progressed_ = true;
            --alive_;
        }
        order.erase(std::remove_if(order.begin(), order.end(), [](Thread* thread) { return thread->has_ended; }),
                    order.end());
        if (has_progressed_ && has_slow) continue;
        if (!has_progressed_ && !has_slow && !order.empty()) {
            if (copies_.empty()) throw std::runtime_error("hang: every thread waits");
            complete(true);
        }
        // After those that stood still went on once, others do.
        const bool draws = launch_.seed != 0 && !has_slow && random_() % 2 == 0;
        has_slow = false;
        for (std::size_t warp = 0; warp < is_slow.size(); ++warp) {
            is_slow[warp] = draws && random_() % 4 == 0;
            has_slow = has_slow || is_slow[warp];
        }
    }
    if (!copies_.empty()) throw std::runtime_error("a block ended before a copy into its shared memory");
}

void Block::wait_until(const std::function<bool()>& is_met) {
    while (!is_met()) yield();
    has_progressed_ = true;
}

void Block::sync_threads() {
    const unsigned generation = generation_;
    ++arrived_;
    // Threads that have ended are not waited for.
    wait_until([&] {
        if (generation_ == generation && arrived_ >= alive_) {
            arrived_ = 0;
            ++generation_;
        }
        return generation_ != generation;
    });
}

void Block::sync_cluster() {
    const unsigned generation = cluster_generation_;
    ++at_cluster_;
    wait_until([&] {
        if (cluster_generation_ == generation && at_cluster_ >= alive_) {
            cluster_.sync();
            at_cluster_ = 0;
            ++cluster_generation_;
        }
        return cluster_generation_ != generation;
    });
}

std::uint64_t Block::exchange(std::uint64_t bits, int distance) {
    const unsigned thread = threadIdx.x;
    const unsigned lane = thread % 32;
    Warp& warp = warps_[thread / 32];
    const unsigned lanes = std::min(32u, launch_.block.x - thread / 32 * 32);
    const unsigned generation = warp.generation;
    warp.lanes[generation % 2][lane] = bits;
    ++warp.given;
    wait_until([&] {
        if (warp.generation == generation && warp.given == lanes) {
            warp.given = 0;
            ++warp.generation;
        }
        return warp.generation != generation;
    });
    return warp.lanes[generation % 2][lane ^ distance];
}

void Block::copy_in(void* target, const void* source, std::uint32_t bytes, std::uint64_t& barrier) {
    const auto* begin = static_cast<unsigned char*>(target);
    if (begin < dynamic_.get() || begin + bytes > dynamic_.get() + launch_.dynamic_bytes) {
        throw std::runtime_error("bulk copy: past the shared memory of the launch");
    }
    if (bytes == 0 || bytes % 16 != 0) throw std::runtime_error("bulk copy: its size is no multiple of 16 bytes");
    require_aligned(target, 16, "bulk copy");
    require_aligned(source, 16, "bulk copy");
    copies_.push_back({target, source, bytes, &barrier});
}

// Seed 0 leaves copies until nothing else can go on: as late as may be.
void Block::complete(bool all) {
    std::vector<Copy> rest;
    for (const Copy& copy : copies_) {
        if (!all && (launch_.seed == 0 || random_() % 2 == 0)) {
            rest.push_back(copy);
            continue;
        }
        std::memcpy(copy.target, copy.source, copy.bytes);
        ByteBarrier& barrier = barrier_of(*copy.barrier);
        barrier.bytes -= static_cast<std::int32_t>(copy.bytes);
        settle(barrier);
        has_progressed_ = true;
    }
    copies_ = std::move(rest);
}

void Cluster::enter(unsigned rank, const char* own) {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        anchors_[rank] = own;
    }
    sync();
}

void Cluster::leave(unsigned rank) {
    const std::lock_guard<std::mutex> lock(mutex_);
    ended_[rank] = true;
    changed_.notify_all();
}

void Cluster::give_up() {
    const std::lock_guard<std::mutex> lock(mutex_);
    has_failed_ = true;
    changed_.notify_all();
}

void Cluster::sync() {
    std::unique_lock<std::mutex> lock(mutex_);
    const unsigned generation = generation_;
    const auto cannot_come = [&] {
        return has_failed_ || std::find(ended_.begin(), ended_.end(), true) != ended_.end();
    };
    if (++waiting_ == blocks()) {
        waiting_ = 0;
        ++generation_;
        changed_.notify_all();
        return;
    }
    changed_.wait_for(lock, kPatience, [&] { return generation_ != generation || cannot_come(); });
    if (generation_ == generation) throw std::runtime_error("hang: a block waits for another one of its cluster");
}

const void* Cluster::of_block(const void* own, unsigned rank) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (rank >= blocks()) throw std::runtime_error("no such block in the cluster");
    if (ended_[rank]) throw std::runtime_error("read of the shared memory of a block that has ended");
    return anchors_[rank] + (static_cast<const char*>(own) - &anchor);
}

void run(const Launch& launch) {
    for (unsigned first = 0; first < launch.grid.x; first += launch.cluster) {
        Cluster cluster(launch.cluster);
        std::vector<std::exception_ptr> errors(launch.cluster);
        const auto run_block = [&](unsigned rank) {
            try {
                cluster.enter(rank, &anchor);
                Block block(launch, {first + rank, 0, 0}, cluster, rank);
                block.run();
                cluster.leave(rank);
            } catch (...) {
                errors[rank] = std::current_exception();
                cluster.give_up();
            }
        };
        if (launch.cluster == 1) {
            run_block(0);
        } else {
            std::vector<std::thread> blocks;
            for (unsigned rank = 0; rank < launch.cluster; ++rank) blocks.emplace_back(run_block, rank);
            for (std::thread& block : blocks) block.join();
        }
        for (const auto& error : errors) {
            if (error) std::rethrow_exception(error);
        }
    }
}

}  // namespace emulation

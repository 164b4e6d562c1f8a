// A GPU on the CPU: threads of a block are coroutines that one thread of the system runs in turn; the blocks of a
// cluster are threads of the system, so that each has shared memory of its own.
//
// What a GPU leaves open is drawn from a seed: which thread goes first after a barrier, and when a bulk copy arrives.
// A kernel that is right computes the same bits for every seed. What a GPU answers with an illegal address, a
// misaligned address or a hang ends the launch with a message.
#pragma once

#include <condition_variable>
#include <csetjmp>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace emulation {

struct Index {
    unsigned x = 0;
    unsigned y = 0;
    unsigned z = 0;
};

// The blocks that see each other's shared memory. One alone is a cluster as well.
class Cluster {
  public:
    explicit Cluster(unsigned blocks) : anchors_(blocks), ended_(blocks) {}

    unsigned blocks() const { return static_cast<unsigned>(anchors_.size()); }

    // Wait for the other blocks. Throws where one of them ended or failed, or where none comes.
    void sync();

    // Called by each block before its first and after its last instruction.
    void enter(unsigned rank, const char* anchor);
    void leave(unsigned rank);

    // Let the others go on, to fail as well.
    void give_up();

    // Where block `rank` keeps what the calling block keeps at `own`. Throws where it has ended.
    const void* of_block(const void* own, unsigned rank);

  private:
    std::mutex mutex_;
    std::condition_variable changed_;
    std::vector<const char*> anchors_;  // an address in each block's shared memory
    std::vector<bool> ended_;
    unsigned waiting_ = 0;
    unsigned generation_ = 0;
    bool has_failed_ = false;
};

struct Launch {
    Index grid;
    Index block;
    std::size_t dynamic_bytes = 0;
    unsigned cluster = 1;
    std::uint64_t seed = 0;
    std::function<void()> kernel;  // one thread of it
};

// Run every block of `launch`; throw std::runtime_error where the kernel does what a GPU does not allow.
void run(const Launch& launch);

// What follows is for the thread of a block that runs now.

struct Thread;

class Block {
  public:
    Block(const Launch& launch, Index index, Cluster& cluster, unsigned rank);
    ~Block();
    Block(const Block&) = delete;

    // Run all threads to their end.
    void run();

    static Block& current();
    // Let others run until `is_met` holds.
    void wait_until(const std::function<bool()>& is_met);
    void sync_threads();
    void sync_cluster();

    // Give `bits` to the warp and take what the lane at `distance` (by exclusive or) gave.
    std::uint64_t exchange(std::uint64_t bits, int distance);

    // Copy later; see machine.cuh.
    void copy_in(void* target, const void* source, std::uint32_t bytes, std::uint64_t& barrier);

    unsigned char* dynamic_shared() { return dynamic_.get(); }
    Cluster& cluster() { return cluster_; }

  private:
    struct Copy {
        void* target;
        const void* source;
        std::uint32_t bytes;
        std::uint64_t* barrier;
    };
    struct Warp {
        std::uint64_t lanes[2][32];
        unsigned given = 0;
        unsigned generation = 0;
    };

    void resume(Thread& thread);
    void yield();
    void complete(bool all);

    const Launch& launch_;
    Cluster& cluster_;
    unsigned rank_;
    std::unique_ptr<unsigned char[], void (*)(void*)> dynamic_;
    std::vector<std::unique_ptr<Thread>> threads_;
    std::vector<Warp> warps_;
    std::vector<Copy> copies_;
    std::mt19937_64 random_;
    Thread* running_ = nullptr;
    std::jmp_buf scheduler_;
    void* fake_stack_ = nullptr;
    unsigned alive_;
    unsigned arrived_ = 0;
    unsigned generation_ = 0;
    unsigned at_cluster_ = 0;
    unsigned cluster_generation_ = 0;
    bool has_progressed_ = false;

    friend struct Thread;
};

// A barrier of shared memory, which counts one arrival and the bytes that are to come.
struct ByteBarrier {
    std::uint32_t phase : 1;
    std::uint32_t has_arrived : 1;
    std::uint32_t is_ready : 1;
    std::int32_t bytes;
};
static_assert(sizeof(ByteBarrier) == sizeof(std::uint64_t));

inline ByteBarrier& barrier_of(std::uint64_t& word) { return reinterpret_cast<ByteBarrier&>(word); }

inline void settle(ByteBarrier& barrier) {
    if (!barrier.has_arrived || barrier.bytes != 0) return;
    barrier.has_arrived = 0;
    barrier.phase ^= 1;
}

inline void require_aligned(const void* address, std::size_t bytes, const char* what) {
    if (reinterpret_cast<std::uintptr_t>(address) % bytes != 0) {
        throw std::runtime_error(std::string(what) + ": misaligned address");
    }
}

}  // namespace emulation

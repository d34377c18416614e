// MPI calls that throw, for runtime/comm/mpi_*.cpp only: no other file includes MPI.
#pragma once

#include <mpi.h>

#include <cstddef>
#include <exception>

namespace ptrt {

// Throws when an MPI call failed; `call` is its name.
void check_mpi(int code, const char* call);

// Bytes as an MPI count; throws where they are too many.
int to_mpi_count(std::size_t bytes);

// A communicator that throws instead of aborting, freed with the object.
class Communicator {
 public:
  explicit Communicator(MPI_Comm comm) : comm_(comm) {
    check_mpi(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    check_mpi(MPI_Comm_rank(comm_, &rank_), "MPI_Comm_rank");
    check_mpi(MPI_Comm_size(comm_, &size_), "MPI_Comm_size");
  }
  ~Communicator() {
    // Freeing is collective; during stack unwinding the other ranks do not take part.
    if (std::uncaught_exceptions() == 0) MPI_Comm_free(&comm_);
  }
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  MPI_Comm get() const { return comm_; }
  int rank() const { return rank_; }
  int size() const { return size_; }

 private:
  MPI_Comm comm_;
  int rank_ = 0, size_ = 1;
};

}  // namespace ptrt

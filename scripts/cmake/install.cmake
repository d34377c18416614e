# What `cmake --install build` and the Debian package hold (docs/INSTALL.md). Component "program" is all but the plug-in,
# which needs CUDA's libraries and is a package of its own.
include(GNUInstallDirs)
set(shared ${CMAKE_INSTALL_DATADIR}/ptrt)

# The targets that are installed; `make build` builds them.
add_custom_target(product DEPENDS ptrt)
set(CMAKE_SKIP_INSTALL_ALL_DEPENDENCY ON)  # installing builds nothing, tests least of all

# MPI and HDF5 of the site (MPI_HOME, HDF5_HOME) are found where they were at build time.
set_target_properties(ptrt PROPERTIES INSTALL_RPATH_USE_LINK_PATH ON)
install(TARGETS ptrt RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} COMPONENT program)
install(DIRECTORY docs DESTINATION ${CMAKE_INSTALL_DOCDIR} COMPONENT program FILES_MATCHING PATTERN "*.md" PATTERN "*.svg")
install(FILES README.md CONTRIBUTING.md DESTINATION ${CMAKE_INSTALL_DOCDIR} COMPONENT program)
install(DIRECTORY examples DESTINATION ${shared} COMPONENT program)
install(PROGRAMS
  scripts/convert_pt.py
  scripts/grade_demo.py
  scripts/run_demo.sh
  scripts/show_results.py
  scripts/train_demo.py
  scripts/train_pt.py
  DESTINATION ${shared}/scripts COMPONENT program)
install(DIRECTORY scripts/slurm DESTINATION ${shared}/scripts COMPONENT program FILES_MATCHING PATTERN "*.sbatch")
install(FILES scripts/demo_tasks.py scripts/pt_model.py DESTINATION ${shared}/scripts COMPONENT program)
install(DIRECTORY scripts/convert DESTINATION ${shared}/scripts COMPONENT program FILES_MATCHING PATTERN "*.py")
set(components program)

# The plug-in lies below the library folder, where the program looks after its own folder (plugin_loader.cpp).
if(TARGET ptrt_cuda)
  add_dependencies(product ptrt_cuda)
  install(TARGETS ptrt_cuda LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}/ptrt COMPONENT cuda OPTIONAL)
  list(APPEND components cuda)
endif()

set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME ptrt)
set(CPACK_PACKAGE_CONTACT "ptrt developers <ptrt@localhost>")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "Runtime for Parallel Track transformers: one MPI rank per track")
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_STRIP_FILES ON)
set(CPACK_COMPONENTS_ALL ${components})
set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PROGRAM_PACKAGE_NAME ptrt)
set(CPACK_DEBIAN_PROGRAM_PACKAGE_SECTION science)
set(CPACK_DEBIAN_PROGRAM_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PROGRAM_PACKAGE_DEPENDS openmpi-bin)
set(CPACK_DEBIAN_PROGRAM_PACKAGE_RECOMMENDS "python3, python3-jinja2")  # for chat templates and share/ptrt/scripts
set(CPACK_DEBIAN_CUDA_PACKAGE_NAME ptrt-cuda)
set(CPACK_DEBIAN_CUDA_PACKAGE_SECTION science)
set(CPACK_DEBIAN_CUDA_PACKAGE_DEPENDS "ptrt (= ${PROJECT_VERSION})")  # CUDA's own libraries come from the site
set(CPACK_COMPONENT_PROGRAM_DESCRIPTION "The program ptrt, its documents and the demo model")
set(CPACK_COMPONENT_CUDA_DESCRIPTION "The CUDA backend of ptrt; needs the CUDA runtime, cuBLASLt and NCCL of the site")
include(CPack)
